// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";
import {IInferencePayment} from "../interfaces/IInferencePayment.sol";

/// @title Channels, and the vouchers that draw on them
library Channels {
    /// @notice A client's deposit with a gateway; one slot.
    /// @param spent all that was drawn; never falls
    /// @param deposited all that was paid in, less what was withdrawn
    /// @param unlockAt Unix time in seconds from which the exit can be finalized; 0: no exit was requested
    struct Channel {
        uint96 spent;
        uint96 deposited;
        uint64 unlockAt;
    }

    /// @notice EIP-712 type of a voucher.
    bytes32 internal constant VOUCHER_TYPEHASH = keccak256("Voucher(bytes32 channelId,uint96 cumulative)");

    /// @notice The id of a channel.
    /// @param client who paid
    /// @param signer whose vouchers draw on it
    /// @param gateway whose batches draw on it
    function idOf(address client, address signer, address gateway) internal pure returns (bytes32) {
        return keccak256(abi.encode(client, signer, gateway));
    }

    /// @notice A channel: it lives in the slot that its id names. The id is a hash already (of three words, as that of
    /// no mapping or array is), so that a mapping would hash it once more for nothing, for each claim of a batch.
    /// @param id from {idOf}
    function find(bytes32 id) internal pure returns (Channel storage channel) {
        assembly ("memory-safe") {
            channel.slot := id
        }
    }

    /// @notice Draws on the channels of a gateway what the claims say, each with its voucher.
    /// @dev In assembly and in memory that is set up once, because this is what a batch pays for each channel; with
    /// memory of its own for each claim, each would also cost more than the last. The members of a claim are used in
    /// full width: one with more bits than its type belongs to no channel, or is compared with what does fit.
    /// @param separator of the EIP-712 domain
    /// @param gateway whose batch it is
    /// @param claims what is drawn
    /// @return sum of what was drawn
    function draw(bytes32 separator, address gateway, IInferencePayment.Claim[] calldata claims)
        internal
        returns (uint256 sum)
    {
        bytes32 typeHash = VOUCHER_TYPEHASH;
        uint256 index;
        assembly ("memory-safe") {
            // client, signer, gateway | type hash, channel, cumulative | 0x1901, domain, hash of the second part |
            // input of ecrecover: digest, v, r, s. What does not depend on the claim is written before the loop.
            let frame := mload(0x40)
            mstore(add(frame, 64), gateway)
            mstore(add(frame, 96), typeHash)
            mstore(add(frame, 192), shl(240, 0x1901))
            mstore(add(frame, 194), separator)
            let claim := claims.offset
            mstore(add(frame, 416), add(claim, mul(claims.length, 192)))
            for {} lt(claim, mload(add(frame, 416))) { claim := add(claim, 192) } {
                calldatacopy(frame, claim, 64)
                let slot := keccak256(frame, 96)
                mstore(0, slot)
                mstore(add(frame, 128), slot)
                mstore(add(frame, 160), calldataload(add(claim, 64)))
                mstore(add(frame, 226), keccak256(add(frame, 96), 96))
                mstore(add(frame, 288), keccak256(add(frame, 192), 66))
                // EIP-2098: the parity of v above s. A mirrored signature, with its s above 2^255, has no such form.
                let vs := calldataload(add(claim, 160))
                mstore(add(frame, 320), add(27, shr(255, vs)))
                mstore(add(frame, 352), calldataload(add(claim, 128)))
                mstore(add(frame, 384), shr(1, shl(1, vs)))
                // Answers nothing where there is no signer: the word then stays the channel's id, which is no address.
                pop(staticcall(gas(), 1, add(frame, 288), 128, 0, 32))
                let channel := sload(slot) // spent, deposited, unlockAt from the lowest bit up
                let total := calldataload(add(claim, 96))
                let amount := sub(total, and(channel, 0xffffffffffffffffffffffff))
                // amount = 0, or total < spent (the difference then exceeds any amount), or total > deposited or
                // cumulative
                let bad :=
                    or(
                        or(xor(mload(0), mload(add(frame, 32))), gt(sub(amount, 1), 0xffffffffffffffffffffffff)),
                        or(
                            gt(total, and(shr(96, channel), 0xffffffffffffffffffffffff)),
                            gt(total, mload(add(frame, 160)))
                        )
                    )
                if bad { break }
                sum := add(sum, amount) // each below 2^96
                sstore(slot, add(channel, amount))
            }
            index := div(sub(claim, claims.offset), 192)
        }
        if (index < claims.length) _explain(separator, gateway, claims[index], index);
    }

    /// @dev Reverts with what is wrong with a claim that was refused.
    function _explain(bytes32 separator, address gateway, IInferencePayment.Claim calldata claim, uint256 index)
        private
        view
    {
        bytes32 id = idOf(claim.client, claim.signer, gateway);
        bytes32 digest =
            MessageHashUtils.toTypedDataHash(separator, keccak256(abi.encode(VOUCHER_TYPEHASH, id, claim.cumulative)));
        (address signer,,) = ECDSA.tryRecover(digest, claim.r, claim.vs);
        if (signer == address(0) || signer != claim.signer) {
            revert IInferencePayment.InferencePayment__BadVoucher(index, id, claim.signer);
        }
        Channel storage channel = find(id);
        uint96 most = claim.cumulative < channel.deposited ? claim.cumulative : channel.deposited;
        revert IInferencePayment.InferencePayment__BadClaim(index, id, claim.total, channel.spent, most);
    }
}
