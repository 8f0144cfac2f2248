// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {Hashes} from "@openzeppelin/contracts/utils/cryptography/Hashes.sol";
import {IInferencePayment} from "./interfaces/IInferencePayment.sol";
import {IStatements} from "./interfaces/IStatements.sol";
import {Channels} from "./libraries/Channels.sol";

/// @title What is signed about payments
abstract contract Statements is EIP712, IStatements {
    bytes32 private constant PREPROCESS_TYPEHASH = keccak256("Preprocess(bytes32 requestId,bytes32 commitment)");
    bytes32 private constant COMPLETION_TYPEHASH = keccak256("Completion(bytes32 requestId,bytes32 resultHash)");
    bytes32 private constant FAILURE_TYPEHASH = keccak256("Failure(bytes32 requestId)");
    bytes32 private constant BATCH_TYPEHASH = keccak256(
        "Batch(address gateway,uint64 nonce,uint32 epoch,uint32 count,bytes32 receiptsRoot,bytes32 daHash,"
        "bytes32 claimsHash,bytes32 creditsHash)"
    );

    constructor() EIP712("NCN InferencePayment", "1") {}

    /// @inheritdoc IStatements
    function hashVoucher(bytes32 id, uint96 cumulative) external view returns (bytes32) {
        return _digest(Channels.VOUCHER_TYPEHASH, id, bytes32(uint256(cumulative)));
    }

    /// @inheritdoc IStatements
    function hashBatch(IInferencePayment.Batch calldata batch) public view returns (bytes32) {
        bytes32 typeHash = BATCH_TYPEHASH;
        bytes32 structHash;
        assembly ("memory-safe") {
            let data := mload(0x40)
            mstore(data, typeHash)
            calldatacopy(add(data, 32), batch, 256)
            structHash := keccak256(data, 288)
        }
        return _hashTypedDataV4(structHash);
    }

    /// @inheritdoc IStatements
    function hashPreprocess(bytes32 id, bytes32 commitment) public view returns (bytes32) {
        return _digest(PREPROCESS_TYPEHASH, id, commitment);
    }

    /// @inheritdoc IStatements
    function hashCompletion(bytes32 id, bytes32 outputHash, uint96 fee) public view returns (bytes32) {
        bytes32 resultHash = Hashes.efficientKeccak256(outputHash, bytes32(uint256(fee)));
        return _digest(COMPLETION_TYPEHASH, id, resultHash);
    }

    /// @inheritdoc IStatements
    function hashFailure(bytes32 id) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(FAILURE_TYPEHASH, id)));
    }

    /// @inheritdoc IStatements
    function hashRequest(IInferencePayment.Request calldata request) public pure returns (bytes32 hash) {
        assembly ("memory-safe") {
            let data := mload(0x40)
            calldatacopy(data, request, 256)
            hash := keccak256(data, 256)
        }
    }

    /// @inheritdoc IStatements
    function hashClaims(IInferencePayment.Claim[] calldata claims) public pure returns (bytes32 hash) {
        // The elements are static, so that calldata holds them as abi.encode would: copied at once, not field by field.
        assembly ("memory-safe") {
            hash := mload(0x40)
            let size := mul(claims.length, 192)
            mstore(hash, 32)
            mstore(add(hash, 32), claims.length)
            calldatacopy(add(hash, 64), claims.offset, size)
            hash := keccak256(hash, add(size, 64))
        }
    }

    /// @inheritdoc IStatements
    function hashCredits(IInferencePayment.Credit[] calldata credits) public pure returns (bytes32 hash) {
        assembly ("memory-safe") {
            hash := mload(0x40)
            let size := mul(credits.length, 64)
            mstore(hash, 32)
            mstore(add(hash, 32), credits.length)
            calldatacopy(add(hash, 64), credits.offset, size)
            hash := keccak256(hash, add(size, 64))
        }
    }

    /// @inheritdoc IStatements
    // forge-lint: disable-next-line(mixed-case-function)
    function DOMAIN_SEPARATOR() external view returns (bytes32) {
        return _domainSeparatorV4();
    }

    /// @dev The EIP-712 digest of a type with two members.
    function _digest(bytes32 typeHash, bytes32 first, bytes32 second) private view returns (bytes32 digest) {
        bytes32 separator = _domainSeparatorV4();
        assembly ("memory-safe") {
            let data := mload(0x40)
            mstore(data, typeHash)
            mstore(add(data, 32), first)
            mstore(add(data, 64), second)
            let structHash := keccak256(data, 96)
            mstore(data, shl(240, 0x1901))
            mstore(add(data, 2), separator)
            mstore(add(data, 34), structHash)
            digest := keccak256(data, 66)
        }
    }
}
