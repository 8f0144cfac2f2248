// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IInferencePayment} from "./IInferencePayment.sol";

/// @title What is signed about payments: EIP-712 digests
/// @notice Domain {"NCN InferencePayment", "1", chain id, contract}. One type for each purpose, never shared: a
/// signature for one purpose means nothing for another, nor on another chain, nor for another deployment.
interface IStatements {
    /// @notice What the signer of a channel signs: `Voucher(bytes32 channelId,uint96 cumulative)`.
    /// @param channelId the channel
    /// @param cumulative most that may ever have been drawn from it
    function hashVoucher(bytes32 channelId, uint96 cumulative) external view returns (bytes32 digest);

    /// @notice What validators sign of a batch: `Batch(address gateway,uint64 nonce,uint32 epoch,uint32 count,
    /// bytes32 receiptsRoot,bytes32 daHash,bytes32 claimsHash,bytes32 creditsHash)`.
    /// @param batch its head
    function hashBatch(IInferencePayment.Batch calldata batch) external view returns (bytes32 digest);

    /// @notice What validators sign before a client pays: `Preprocess(bytes32 requestId,bytes32 commitment)`.
    /// @param requestId the request
    /// @param commitment {hashRequest} of its terms
    function hashPreprocess(bytes32 requestId, bytes32 commitment) external view returns (bytes32 digest);

    /// @notice What validators sign of a result: `Completion(bytes32 requestId,bytes32 resultHash)`, with
    /// resultHash = keccak256(abi.encode(outputHash, fee)).
    /// @param requestId the request
    /// @param outputHash of the result
    /// @param fee what is paid for it
    function hashCompletion(bytes32 requestId, bytes32 outputHash, uint96 fee) external view returns (bytes32 digest);

    /// @notice What validators sign of a request that came to nothing: `Failure(bytes32 requestId)`.
    /// @param requestId the request
    function hashFailure(bytes32 requestId) external view returns (bytes32 digest);

    /// @notice The commitment of a request's terms: keccak256(abi.encode(request)), eight words.
    /// @param request its terms
    function hashRequest(IInferencePayment.Request calldata request) external pure returns (bytes32);

    /// @notice The `claimsHash` of a batch: keccak256(abi.encode(claims)), which is the word 32, the number of claims,
    /// and six words for each.
    /// @param claims in their order
    function hashClaims(IInferencePayment.Claim[] calldata claims) external pure returns (bytes32);

    /// @notice The `creditsHash` of a batch: keccak256(abi.encode(credits)), which is the word 32, the number of
    /// credits, and two words for each.
    /// @param credits in their order
    function hashCredits(IInferencePayment.Credit[] calldata credits) external pure returns (bytes32);

    // forge-lint: disable-next-line(mixed-case-function)
    /// @notice The EIP-712 domain separator.
    function DOMAIN_SEPARATOR() external view returns (bytes32);
}
