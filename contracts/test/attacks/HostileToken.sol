// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {NCNToken} from "../../src/NCNToken.sol";

/// @title A token that does to the network what the network's own token never does
/// @notice It calls back into its callers in the middle of their transfers, keeps a fee, and refuses payees. It can
/// also act for itself ({act}), so that what it calls back with comes from somebody who has money there.
contract HostileToken is NCNToken {
    struct Strike {
        address target;
        bytes data;
    }

    /// @notice It does not pay this account.
    error HostileToken__Refused(address account);

    /// @notice Kept back of every transfer.
    uint256 public fee;
    /// @notice Whom it does not pay.
    mapping(address account => bool) public refuses;

    /// @notice Standing strikes that were made.
    uint256 public attempts;
    /// @notice Standing strikes that got past the guard, whether they then failed or not.
    uint256 public breaches;
    /// @notice What the last of them called.
    bytes public lastBreach;

    /// @notice Whether the armed strike was made.
    bool public fired;
    /// @notice Whether it succeeded.
    bool public hit;
    /// @notice What it returned or reverted with.
    bytes public result;

    mapping(address caller => Strike[]) private _standing;
    Strike private _armed;
    bool private _striking;

    constructor(address holder, uint256 supply) NCNToken(holder, supply) {}

    /// @notice Calls anything as the token.
    function act(address target, bytes calldata data) external returns (bytes memory) {
        (bool success, bytes memory answer) = target.call(data);
        if (!success) {
            assembly ("memory-safe") {
                revert(add(answer, 32), mload(answer))
            }
        }
        return answer;
    }

    function setFee(uint256 fee_) external {
        fee = fee_;
    }

    function setRefused(address account, bool refused) external {
        refuses[account] = refused;
    }

    /// @notice From now on, makes this call in the middle of every transfer that `caller` asks for.
    function stand(address caller, address target, bytes calldata data) external {
        _standing[caller].push(Strike(target, data));
    }

    /// @notice Makes this call once, in the middle of the next transfer.
    function arm(address target, bytes calldata data) external {
        _armed = Strike(target, data);
        (fired, hit, result) = (false, false, "");
    }

    function _update(address from, address to, uint256 value) internal override {
        if (refuses[to]) revert HostileToken__Refused(to);
        if (fee != 0 && from != address(0) && value > fee) {
            super._update(from, address(0), fee);
            value -= fee;
        }
        super._update(from, to, value);
        if (_striking) return;
        _striking = true;
        _strike(msg.sender);
        _striking = false;
    }

    function _strike(address caller) private {
        Strike[] storage standing = _standing[caller];
        for (uint256 i = 0; i < standing.length; ++i) {
            ++attempts;
            (bool success, bytes memory answer) = standing[i].target.call(standing[i].data);
            if (success || bytes4(answer) != ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector) {
                ++breaches;
                lastBreach = standing[i].data;
            }
        }
        if (_armed.target == address(0)) return;
        Strike memory armed = _armed;
        delete _armed;
        fired = true;
        (hit, result) = armed.target.call(armed.data);
    }
}
