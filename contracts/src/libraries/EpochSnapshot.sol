// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Create3} from "@openzeppelin/contracts/utils/Create3.sol";

/// @title The members of an epoch, pinned for ever as the code of a contract of their own
/// @notice One read gives the whole set (code is cheaper to read than a slot for each member), and the address
/// follows from the registry and the epoch alone (CREATE3), so that a reader needs no call to the registry either.
/// Code: STOP, uint64 validUntil (Unix time in seconds), uint16 quorum size, then 20 bytes for each member.
library EpochSnapshot {
    /// @notice The epoch has not begun: it has no members.
    error EpochSnapshot__UnknownEpoch(uint32 epoch);

    /// @dev Bytes before the first member. The first is STOP, so that nobody can run the rest as code.
    uint256 private constant HEAD_BYTES = 11;

    /// @notice What an epoch is, in memory.
    /// @param validUntil Unix time in seconds up to which the members may sign what is new
    /// @param quorumSize fewest signatures that are a quorum
    /// @param count number of members
    /// @param pointer to the word of which the first 20 bytes are member 0
    struct Snapshot {
        uint256 validUntil;
        uint256 quorumSize;
        uint256 count;
        uint256 pointer;
    }

    /// @notice Pins the members of an epoch; the calling contract is their registry.
    /// @param epoch not pinned before
    /// @param validUntil Unix time in seconds up to which they may sign what is new
    /// @param quorumSize fewest signatures that are a quorum
    /// @param accounts of the members, all different, at most 256
    function write(uint32 epoch, uint64 validUntil, uint16 quorumSize, address[] memory accounts) internal {
        uint256 size = HEAD_BYTES + 20 * accounts.length;
        // 12 bytes more, since the word that begins with the last member is written whole.
        bytes memory data = new bytes(size + 12);
        assembly ("memory-safe") {
            let target := add(data, 32)
            mstore(target, or(shl(184, validUntil), shl(168, quorumSize)))
            target := add(target, HEAD_BYTES)
            let source := add(accounts, 32)
            for { let end := add(source, mul(mload(accounts), 32)) } lt(source, end) { source := add(source, 32) } {
                mstore(target, shl(96, mload(source)))
                target := add(target, 20)
            }
            mstore(data, size)
        }
        // PUSH4 size, DUP1, PUSH1 14, PUSH1 0, CODECOPY, PUSH1 0, RETURN: returns what follows these 14 bytes.
        // forge-lint: disable-next-line(unsafe-typecast)
        bytes memory creation = abi.encodePacked(hex"63", uint32(size), hex"80600e6000396000f3", data);
        Create3.deploy(0, bytes32(uint256(epoch)), creation);
    }

    /// @notice An epoch as pinned.
    /// @param registry whose epoch it is
    /// @param epoch must have begun
    function load(address registry, uint32 epoch) internal view returns (Snapshot memory snapshot) {
        address store = Create3.computeAddress(bytes32(uint256(epoch)), registry);
        uint256 size;
        assembly ("memory-safe") {
            size := extcodesize(store)
        }
        if (size == 0) revert EpochSnapshot__UnknownEpoch(epoch);
        assembly ("memory-safe") {
            let code := mload(0x40)
            extcodecopy(store, code, 0, size)
            mstore(0x40, and(add(add(code, size), 63), not(31))) // one more word: the last member is read as a word
            let head := mload(code)
            mstore(snapshot, and(shr(184, head), 0xffffffffffffffff))
            mstore(add(snapshot, 32), and(shr(168, head), 0xffff))
            mstore(add(snapshot, 64), div(sub(size, HEAD_BYTES), 20))
            mstore(add(snapshot, 96), add(code, HEAD_BYTES))
        }
    }

    /// @notice The members of an epoch, in their order.
    /// @param snapshot from {load}
    function members(Snapshot memory snapshot) internal pure returns (address[] memory accounts) {
        accounts = new address[](snapshot.count);
        uint256 source = snapshot.pointer;
        for (uint256 i = 0; i < accounts.length; ++i) {
            address account;
            assembly ("memory-safe") {
                account := shr(96, mload(add(source, mul(i, 20))))
            }
            accounts[i] = account;
        }
    }
}
