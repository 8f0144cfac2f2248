// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EpochSnapshot} from "./EpochSnapshot.sol";

/// @title Whether enough members of an epoch signed a digest
/// @notice Bit i of a bitmap stands for member i of the epoch, so that no member counts twice. The signatures follow
/// in ascending order of member, 65 bytes each: r, s, v; s in the lower half of the order, v 27 or 28.
library Quorum {
    /// @notice The members of the epoch may sign nothing new any more; sign with those of a later one.
    error Quorum__EpochStale(uint32 epoch, uint256 validUntil);
    /// @notice Too few members signed.
    error Quorum__TooFewSigners(uint256 signers, uint256 needed);
    /// @notice The bitmap names a member that the epoch does not have.
    error Quorum__NoSuchMember(uint256 index, uint256 members);
    /// @notice The number of signatures differs from the number of members in the bitmap, or one is cut short.
    error Quorum__SignaturesMismatch(uint256 bitmap, uint256 signaturesLength);
    /// @notice A signature is not the member's over this digest.
    error Quorum__BadSignature(uint256 index, address member, bytes32 digest);
    /// @notice A signer has an interest in what is signed.
    error Quorum__SignerExcluded(address signer);

    uint256 private constant SIGNATURE_BYTES = 65;

    /// @dev Half the order of secp256k1: a signature with a larger s is the mirror of another one (EIP-2).
    uint256 private constant HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0;

    /// @notice Checks a quorum of an epoch that may sign what is new: its time is not over.
    /// @param registry whose epoch it is
    /// @param digest what was signed
    /// @param epoch whose members signed
    /// @param bitmap of the members that signed
    /// @param signatures of these, in ascending order of member
    /// @param excluded1 who must not be among them
    /// @param excluded2 who must not be among them
    /// @return signers those who signed, in ascending order of member
    function checkFresh(
        address registry,
        bytes32 digest,
        uint32 epoch,
        uint256 bitmap,
        bytes calldata signatures,
        address excluded1,
        address excluded2
    ) internal view returns (address[] memory signers) {
        EpochSnapshot.Snapshot memory snapshot = EpochSnapshot.load(registry, epoch);
        if (block.timestamp > snapshot.validUntil) revert Quorum__EpochStale(epoch, snapshot.validUntil);
        return _check(snapshot, digest, bitmap, signatures, excluded1, excluded2);
    }

    /// @notice Checks a quorum of the epoch that was pinned for what is signed, however long ago that was.
    /// @param registry whose epoch it is
    /// @param digest what was signed
    /// @param epoch whose members signed
    /// @param bitmap of the members that signed
    /// @param signatures of these, in ascending order of member
    /// @param excluded1 who must not be among them
    /// @param excluded2 who must not be among them
    /// @return signers those who signed, in ascending order of member
    function checkPinned(
        address registry,
        bytes32 digest,
        uint32 epoch,
        uint256 bitmap,
        bytes calldata signatures,
        address excluded1,
        address excluded2
    ) internal view returns (address[] memory signers) {
        return _check(EpochSnapshot.load(registry, epoch), digest, bitmap, signatures, excluded1, excluded2);
    }

    /// @dev The loop is in assembly because every payment pays for it: it does what OpenZeppelin's ECDSA does, in
    /// memory that is set up once, and the outcome is looked at once, at the end. A member is never zero, so that a
    /// signature which recovers nothing fits none.
    function _check(
        EpochSnapshot.Snapshot memory snapshot,
        bytes32 digest,
        uint256 bitmap,
        bytes calldata signatures,
        address excluded1,
        address excluded2
    ) private view returns (address[] memory signers) {
        uint256 size = signatures.length / SIGNATURE_BYTES;
        if (size < snapshot.quorumSize) revert Quorum__TooFewSigners(size, snapshot.quorumSize);
        uint256 bad;
        assembly ("memory-safe") {
            signers := mload(0x40)
            mstore(signers, size)
            let next := add(signers, 32)
            let input := add(next, shl(5, size)) // of ecrecover: digest, v, r, s
            mstore(0x40, add(input, 128))
            mstore(input, digest)
            let signature := signatures.offset
            let pointer := mload(add(snapshot, 96))
            bad := or(
                shr(mload(add(snapshot, 64)), bitmap), // a member that there is not
                sub(signatures.length, mul(size, SIGNATURE_BYTES))
            )
            for { let rest := bitmap } rest { rest := shr(1, rest) } {
                if and(rest, 1) {
                    if eq(next, input) {
                        bad := 1 // more members than signatures
                        break
                    }
                    let member := shr(96, mload(pointer))
                    mstore(next, member)
                    mstore(add(input, 32), byte(0, calldataload(add(signature, 64))))
                    calldatacopy(add(input, 64), signature, 64)
                    mstore(0, 0)
                    pop(staticcall(gas(), 1, input, 128, 0, 32)) // answers nothing where there is no signer
                    bad := or(bad, or(xor(mload(0), member), gt(mload(add(input, 96)), HALF_ORDER)))
                    bad := or(bad, or(eq(member, excluded1), eq(member, excluded2)))
                    next := add(next, 32)
                    signature := add(signature, SIGNATURE_BYTES)
                }
                pointer := add(pointer, 20)
            }
            bad := or(bad, xor(next, input)) // fewer members than signatures
        }
        if (bad != 0) _explain(EpochSnapshot.members(snapshot), digest, bitmap, signatures, excluded1, excluded2);
    }

    /// @dev Reverts with what is wrong with a quorum that was refused.
    function _explain(
        address[] memory members,
        bytes32 digest,
        uint256 bitmap,
        bytes calldata signatures,
        address excluded1,
        address excluded2
    ) private pure {
        uint256 offset = 0;
        for (uint256 index = 0; index < 256; ++index) {
            if ((bitmap >> index) & 1 == 0) continue;
            if (index >= members.length) revert Quorum__NoSuchMember(index, members.length);
            if (offset + SIGNATURE_BYTES > signatures.length) break;
            address member = members[index];
            if (member == excluded1 || member == excluded2) revert Quorum__SignerExcluded(member);
            (address recovered,,) = ECDSA.tryRecoverCalldata(digest, signatures[offset:offset + SIGNATURE_BYTES]);
            if (recovered != member) revert Quorum__BadSignature(index, member, digest);
            offset += SIGNATURE_BYTES;
        }
        revert Quorum__SignaturesMismatch(bitmap, signatures.length);
    }
}
