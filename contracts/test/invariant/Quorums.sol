// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IValidatorRegistry} from "../../src/interfaces/IValidatorRegistry.sol";
import {Model} from "./Model.sol";

/// @title Who signs, by the model's own account of the epochs
abstract contract Quorums is Model {
    function _isMember(uint32 of_, address account) internal view returns (bool) {
        address[] storage members = pinned[of_];
        for (uint256 i = 0; i < members.length; ++i) {
            if (members[i] == account) return true;
        }
        return false;
    }

    /// @dev Members of an epoch but for those excluded: as few as needed, or more. Zero if they can't be found.
    function _bitmap(uint32 of_, address[] memory excluded) internal returns (uint256 bitmap) {
        address[] memory members = registry.members(of_);
        uint256 start = members.length == 0 ? 0 : _random(members.length);
        uint256 wanted = quorumSize[of_] + (_oneIn(4) ? 1 : 0);
        uint256 found = 0;
        for (uint256 i = 0; i < members.length && found < wanted; ++i) {
            uint256 index = (start + i) % members.length;
            bool out = false;
            for (uint256 j = 0; j < excluded.length; ++j) {
                if (members[index] == excluded[j]) out = true;
            }
            if (out) continue;
            bitmap |= 1 << index;
            ++found;
        }
        if (found < quorumSize[of_]) return 0;
    }

    function _without(address first, address second) internal pure returns (address[] memory excluded) {
        excluded = new address[](2);
        (excluded[0], excluded[1]) = (first, second);
    }

    function _signAs(uint32 of_, uint256 bitmap, bytes32 digest) internal view returns (bytes memory signatures) {
        address[] memory members = registry.members(of_);
        for (uint256 i = 0; i < members.length; ++i) {
            if ((bitmap >> i) & 1 == 0) continue;
            signatures = bytes.concat(signatures, signatureOf(keyOf[members[i]], digest));
        }
    }

    /// @dev The bit of a member, 0 for others.
    function _bitOf(uint32 of_, address account) internal view returns (uint256) {
        address[] memory members = registry.members(of_);
        for (uint256 i = 0; i < members.length; ++i) {
            if (members[i] == account) return 1 << i;
        }
        return 0;
    }

    /// @dev Makes sure that there is an epoch whose members can sign what is new.
    function _freshen() internal {
        if (block.timestamp <= validUntil[epoch] && pinned[epoch].length >= 5) return;
        _fillSeats();
        _advance();
    }

    /// @dev Lets validators come back, up to five.
    function _fillSeats() internal {
        uint256 active = 0;
        for (uint256 i = 0; i < candidates.length; ++i) {
            if (seats[candidates[i]].state == IValidatorRegistry.State.ACTIVE) ++active;
        }
        for (uint256 i = 0; i < candidates.length && active < 5; ++i) {
            if (_seat(candidates[i])) ++active;
        }
    }

    /// @dev Makes a candidate active, if its state and its wallet allow that.
    function _seat(address candidate) internal returns (bool) {
        Seat storage seat = seats[candidate];
        IValidatorRegistry.State state = seat.state;
        if (state == IValidatorRegistry.State.NONE || state == IValidatorRegistry.State.EXITED) {
            uint256 stake = STAKE + _amount(STAKE / 2);
            if (wallet[candidate] < stake) return false;
            _must(candidate, address(registry), abi.encodeCall(registry.registerValidator, (stake)));
            (seat.state, seat.stake, seat.exitAt) = (IValidatorRegistry.State.ACTIVE, stake, 0);
            _move(candidate, address(registry), stake);
            _count("register");
            return true;
        }
        if (state == IValidatorRegistry.State.JAILED && !seat.isBond) {
            uint256 amount = STAKE - seat.stake;
            if (wallet[candidate] < amount) return false;
            _must(candidate, address(registry), abi.encodeCall(registry.addStake, (amount)));
            (seat.state, seat.stake) = (IValidatorRegistry.State.ACTIVE, STAKE);
            _move(candidate, address(registry), amount);
            _count("free a jailed validator");
            return true;
        }
        return false;
    }

    function _advance() internal {
        uint256 endsAt = epochStart + registry.epochLength();
        if (block.timestamp < endsAt) vm.warp(endsAt);
        _must(stranger, address(registry), abi.encodeCall(registry.advanceEpoch, ()));
        ++epoch;
        epochStart = block.timestamp;
        validUntil[epoch] = block.timestamp + registry.snapshotLifetime();
        for (uint256 i = 0; i < candidates.length; ++i) {
            if (seats[candidates[i]].state == IValidatorRegistry.State.ACTIVE) pinned[epoch].push(candidates[i]);
        }
        uint256 majority = pinned[epoch].length / 2 + 1;
        quorumSize[epoch] = threshold > majority ? threshold : majority;
        _count("advance epoch");
    }
}
