// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IInferencePayment} from "./IInferencePayment.sol";
import {IValidatorRegistry} from "./IValidatorRegistry.sol";

/// @title Evidence of misconduct, and what it costs: the only slasher
/// @notice Anybody may bring evidence. What signatures prove by themselves needs no judge: a validator that signed two
/// things of which only one can be true. What they don't (a wrong result, downtime) needs the verdict of a
/// quorum of a recent epoch to which the accused does not belong, under this contract's own EIP-712 domain
/// {"NCN DisputeManager", "1", chain id, contract}. Every offence counts once for each validator.
///
/// | misconduct | evidence | stake taken |
/// |-|-|-|
/// | DOWNTIME | a verdict | 10% |
/// | INVALID_RESULT | the signature of the validator, or of the node, under the result, and a verdict | 30% |
/// | INVALID_SIGNATURE | two signatures of one validator that contradict each other | 50% |
/// | COLLUSION | two quorums that contradict each other: from whoever is in both | 100% |
interface IDisputeManager {
    /// @notice What a validator is accused of.
    enum Misconduct {
        DOWNTIME,
        INVALID_RESULT,
        INVALID_SIGNATURE,
        COLLUSION
    }

    /// @notice How validators decided on a request in escrow: that it failed, or what it resulted in.
    /// @param failed a `Failure`; the rest is then ignored
    /// @param outputHash of the result
    /// @param fee what was to be paid for it
    struct Decision {
        bool failed;
        bytes32 outputHash;
        uint96 fee;
    }

    /// @notice A receipt as it enters the tree of a batch: keccak256(bytes.concat(keccak256(abi.encode(receipt)))).
    /// @param requestId of the request
    /// @param channelId who paid
    /// @param node who computed
    /// @param fee what was paid
    /// @param modelHash of the model
    /// @param inputHash of the inputs
    /// @param outputHash of the outputs
    struct Receipt {
        bytes32 requestId;
        bytes32 channelId;
        address node;
        uint96 fee;
        bytes32 modelHash;
        bytes32 inputHash;
        bytes32 outputHash;
    }

    /// @notice A receipt as the node signs it, under the EIP-712 domain of the payment contract, with the type `Receipt`
    /// of the same members: `Receipt(bytes32 requestId,bytes32 requestHash,bytes32 model,bytes32 outputHash,uint64 chunks,
    /// uint64 units,uint96 fee,address node,uint64 startedMs,uint64 finishedMs)`.
    /// @param requestId of the request
    /// @param requestHash of all of the request's content
    /// @param model hash of the model's manifest
    /// @param outputHash of the outputs
    /// @param chunks of the output
    /// @param units that are paid for
    /// @param fee for the request
    /// @param node who computed, and signed
    /// @param startedMs Unix time in milliseconds
    /// @param finishedMs Unix time in milliseconds
    struct NodeReceipt {
        bytes32 requestId;
        bytes32 requestHash;
        bytes32 model;
        bytes32 outputHash;
        uint64 chunks;
        uint64 units;
        uint96 fee;
        address node;
        uint64 startedMs;
        uint64 finishedMs;
    }

    /// @notice Signatures of a quorum.
    /// @param epoch whose members signed
    /// @param bitmap bit i stands for member i of the epoch
    /// @param signatures r, s, v (65 bytes) of each, in ascending order of member
    struct Endorsement {
        uint32 epoch;
        uint256 bitmap;
        bytes signatures;
    }

    /// @notice What a validator did in an epoch.
    /// @param validator who
    /// @param done validations: +1 point of reputation each
    /// @param failed validations: -2 points each
    /// @param timeouts validations that it was late for: -5 points each
    struct Performance {
        address validator;
        uint32 done;
        uint32 failed;
        uint32 timeouts;
    }

    /// @notice Evidence was accepted and the validator, or the compute node, slashed.
    event MisconductProven(
        Misconduct indexed misconduct, address indexed validator, bytes32 indexed subject, uint256 amount
    );
    /// @notice The validators' work in an epoch was booked.
    event PerformanceReported(uint32 indexed period, uint256 validators);

    /// @notice An address that must not be zero is.
    error DisputeManager__ZeroAddress();
    /// @notice Both statements can be true: they are the same, or about different things.
    error DisputeManager__NoConflict();
    /// @notice The two signatures are not of one key.
    error DisputeManager__DifferentSigners(address first, address second);
    /// @notice Nobody is in both quorums who was not slashed for this before.
    error DisputeManager__NoCommonSigner();
    /// @notice A failure is no result that could be invalid.
    error DisputeManager__NoResult(bytes32 requestId);
    /// @notice The receipt was signed by another than the node that it names.
    error DisputeManager__NotOfNode(address signer, address node);
    /// @notice The receipt is not in the batch's tree.
    error DisputeManager__NotInBatch(bytes32 leaf, bytes32 receiptsRoot);
    /// @notice The validator was no member of that epoch.
    error DisputeManager__NotAMember(address validator, uint32 epoch);
    /// @notice The epoch is not over.
    error DisputeManager__PeriodNotOver(uint32 period);
    /// @notice The work in this epoch was booked before.
    error DisputeManager__PeriodReported(uint32 period);

    /// @notice One validator signed two batches of one gateway with one nonce: INVALID_SIGNATURE.
    /// @param first a batch
    /// @param second another one
    /// @param firstSignature of the validator under the first batch
    /// @param secondSignature of the validator under the second batch
    function reportConflictingBatches(
        IInferencePayment.Batch calldata first,
        IInferencePayment.Batch calldata second,
        bytes calldata firstSignature,
        bytes calldata secondSignature
    ) external;

    /// @notice One validator signed two decisions on one request in escrow: INVALID_SIGNATURE.
    /// @param requestId the request
    /// @param first a decision
    /// @param second another one
    /// @param firstSignature of the validator under the first decision
    /// @param secondSignature of the validator under the second decision
    function reportConflictingDecisions(
        bytes32 requestId,
        Decision calldata first,
        Decision calldata second,
        bytes calldata firstSignature,
        bytes calldata secondSignature
    ) external;

    /// @notice Two quorums signed two batches of one gateway with one nonce: COLLUSION of those in both.
    /// @param first a batch
    /// @param second another one
    /// @param firstQuorum of the first batch's epoch
    /// @param secondQuorum of the second batch's epoch
    function reportCollusionOnBatches(
        IInferencePayment.Batch calldata first,
        IInferencePayment.Batch calldata second,
        Endorsement calldata firstQuorum,
        Endorsement calldata secondQuorum
    ) external;

    /// @notice Two quorums signed two decisions on one request in escrow: COLLUSION of those in both.
    /// @param requestId the request
    /// @param first a decision
    /// @param second another one
    /// @param firstQuorum of the first decision
    /// @param secondQuorum of the second decision
    function reportCollusionOnDecisions(
        bytes32 requestId,
        Decision calldata first,
        Decision calldata second,
        Endorsement calldata firstQuorum,
        Endorsement calldata secondQuorum
    ) external;

    /// @notice A validator signed a batch with a receipt of a wrong result: INVALID_RESULT. The verdict's subject is
    /// the receipt's leaf. The batch need not have been settled: the validator approved it when it signed.
    /// @param batch that the validator signed
    /// @param signature of the validator under the batch
    /// @param receipt of the wrong result
    /// @param proof that the receipt is in the batch (OpenZeppelin's MerkleProof)
    /// @param verdict of the judges
    function reportInvalidReceipt(
        IInferencePayment.Batch calldata batch,
        bytes calldata signature,
        Receipt calldata receipt,
        bytes32[] calldata proof,
        Endorsement calldata verdict
    ) external;

    /// @notice A validator signed the completion of a request in escrow with a wrong result: INVALID_RESULT. The
    /// verdict's subject is the digest of the completion.
    /// @param requestId the request
    /// @param result a decision that is no failure
    /// @param signature of the validator under the completion
    /// @param verdict of the judges
    function reportInvalidCompletion(
        bytes32 requestId,
        Decision calldata result,
        bytes calldata signature,
        Endorsement calldata verdict
    ) external;

    /// @notice A compute node signed the receipt of a wrong result: INVALID_RESULT. The verdict's subject is
    /// {hashNodeReceipt}; the offence counts once for each request, whatever else the node signed about it. The node must
    /// have bonded (or registered) once: what it has at stake is slashed, and a bonded node jailed.
    /// @param receipt of the wrong result
    /// @param nodeSignature of the node under the receipt: r, s, v (65 bytes)
    /// @param verdict of the judges, the node not among them
    function reportInvalidResult(
        NodeReceipt calldata receipt,
        bytes calldata nodeSignature,
        Endorsement calldata verdict
    ) external;

    /// @notice A validator was down for most of an epoch: DOWNTIME. The verdict's subject is the epoch, as a word.
    /// @param validator a member of that epoch
    /// @param period the epoch
    /// @param verdict of the judges
    function reportDowntime(address validator, uint32 period, Endorsement calldata verdict) external;

    /// @notice Books what the validators did in an epoch, once for each epoch, as a quorum of a recent one signed it.
    /// @param period the epoch; another one has begun since
    /// @param performances of the validators
    /// @param quorum that signed {hashPerformances}
    function reportPerformances(uint32 period, Performance[] calldata performances, Endorsement calldata quorum)
        external;

    /// @notice What judges sign: `Verdict(uint8 misconduct,address validator,bytes32 subject,uint32 epoch)`.
    /// @param misconduct what the accused did
    /// @param validator who did: a validator or a compute node
    /// @param subject what it is about, as each function says
    /// @param epoch to which the judges belong
    function hashVerdict(Misconduct misconduct, address validator, bytes32 subject, uint32 epoch)
        external
        view
        returns (bytes32 digest);

    /// @notice What validators sign of the work in an epoch:
    /// `Performances(uint32 period,bytes32 performancesHash,uint32 epoch)`, with
    /// performancesHash = keccak256(abi.encode(performances)).
    /// @param period the epoch in which the work was done
    /// @param performances of the validators
    /// @param epoch to which the signers belong
    function hashPerformances(uint32 period, Performance[] calldata performances, uint32 epoch)
        external
        view
        returns (bytes32 digest);

    /// @notice What a node signs of its receipt: its EIP-712 digest, in the domain of {payment}.
    /// @param receipt the receipt
    function hashNodeReceipt(NodeReceipt calldata receipt) external view returns (bytes32 digest);

    /// @notice The leaf of a receipt.
    /// @param receipt the receipt
    function hashReceipt(Receipt calldata receipt) external pure returns (bytes32 leaf);

    /// @notice Whether the work in an epoch was booked.
    /// @param period the epoch
    function performancesReported(uint32 period) external view returns (bool);

    /// @notice Whose statements are judged.
    function payment() external view returns (IInferencePayment);

    /// @notice Whose validators are judged.
    function registry() external view returns (IValidatorRegistry);
}
