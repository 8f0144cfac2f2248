// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {INCNToken} from "../../src/interfaces/INCNToken.sol";

/// @title What tests sign and forge beyond the network's own statements
library Signatures {
    /// @notice Order of secp256k1 (SEC 2).
    uint256 internal constant ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;

    /// @dev EIP-3009.
    bytes32 private constant RECEIVE_TYPEHASH = keccak256(
        "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
    );

    /// @notice The other signature (r, s, v) that proves the same: with s in the upper half of the order.
    function mirrored(bytes memory signature) internal pure returns (bytes memory) {
        bytes32 r;
        uint256 s;
        assembly ("memory-safe") {
            r := mload(add(signature, 32))
            s := mload(add(signature, 64))
        }
        return abi.encodePacked(r, ORDER - s, signature[64] == bytes1(uint8(27)) ? uint8(28) : uint8(27));
    }

    /// @notice What is signed for `receiveWithAuthorization`, valid from the beginning of time until `validBefore`.
    function receiveDigest(INCNToken token, address from, address to, uint256 value, uint256 validBefore, bytes32 nonce)
        internal
        view
        returns (bytes32)
    {
        bytes32 structHash = keccak256(abi.encode(RECEIVE_TYPEHASH, from, to, value, 0, validBefore, nonce));
        return keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), structHash));
    }
}
