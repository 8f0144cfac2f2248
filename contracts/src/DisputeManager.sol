// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";
import {IDisputeManager} from "./interfaces/IDisputeManager.sol";
import {IInferencePayment} from "./interfaces/IInferencePayment.sol";
import {IStatements} from "./interfaces/IStatements.sol";
import {IValidatorRegistry} from "./interfaces/IValidatorRegistry.sol";
import {Quorum} from "./libraries/Quorum.sol";

/// @title Evidence of misconduct, and what it costs: the only slasher
contract DisputeManager is EIP712, IDisputeManager {
    bytes32 private constant VERDICT_TYPEHASH =
        keccak256("Verdict(uint8 misconduct,address validator,bytes32 subject,uint32 epoch)");
    bytes32 private constant PERFORMANCES_TYPEHASH =
        keccak256("Performances(uint32 period,bytes32 performancesHash,uint32 epoch)");
    bytes32 private constant RECEIPT_TYPEHASH = keccak256(
        "Receipt(bytes32 requestId,bytes32 requestHash,bytes32 model,bytes32 outputHash,uint64 chunks,uint64 units,"
        "uint96 fee,address node,uint64 startedMs,uint64 finishedMs)"
    );

    /// @inheritdoc IDisputeManager
    IInferencePayment public immutable payment;
    /// @inheritdoc IDisputeManager
    IValidatorRegistry public immutable registry;
    /// @inheritdoc IDisputeManager
    mapping(uint32 period => bool) public performancesReported;

    IStatements private immutable _statements;

    /// @param payment_ whose statements are judged; its registry's validators are
    constructor(IInferencePayment payment_) EIP712("NCN DisputeManager", "1") {
        if (address(payment_) == address(0)) revert DisputeManager__ZeroAddress();
        payment = payment_;
        registry = payment_.registry();
        _statements = IStatements(address(payment_));
    }

    /// @inheritdoc IDisputeManager
    function reportConflictingBatches(
        IInferencePayment.Batch calldata first,
        IInferencePayment.Batch calldata second,
        bytes calldata firstSignature,
        bytes calldata secondSignature
    ) external {
        (bytes32 firstDigest, bytes32 secondDigest, bytes32 subject) = _conflictingBatches(first, second);
        address validator = _commonSigner(firstDigest, secondDigest, firstSignature, secondSignature);
        _slash(Misconduct.INVALID_SIGNATURE, validator, subject);
    }

    /// @inheritdoc IDisputeManager
    function reportConflictingDecisions(
        bytes32 requestId,
        Decision calldata first,
        Decision calldata second,
        bytes calldata firstSignature,
        bytes calldata secondSignature
    ) external {
        (bytes32 firstDigest, bytes32 secondDigest) = _conflictingDecisions(requestId, first, second);
        address validator = _commonSigner(firstDigest, secondDigest, firstSignature, secondSignature);
        _slash(Misconduct.INVALID_SIGNATURE, validator, requestId);
    }

    /// @inheritdoc IDisputeManager
    function reportCollusionOnBatches(
        IInferencePayment.Batch calldata first,
        IInferencePayment.Batch calldata second,
        Endorsement calldata firstQuorum,
        Endorsement calldata secondQuorum
    ) external {
        (bytes32 firstDigest, bytes32 secondDigest, bytes32 subject) = _conflictingBatches(first, second);
        _slashCommon(
            _signers(firstDigest, first.epoch, firstQuorum), _signers(secondDigest, second.epoch, secondQuorum), subject
        );
    }

    /// @inheritdoc IDisputeManager
    function reportCollusionOnDecisions(
        bytes32 requestId,
        Decision calldata first,
        Decision calldata second,
        Endorsement calldata firstQuorum,
        Endorsement calldata secondQuorum
    ) external {
        (bytes32 firstDigest, bytes32 secondDigest) = _conflictingDecisions(requestId, first, second);
        _slashCommon(
            _signers(firstDigest, firstQuorum.epoch, firstQuorum),
            _signers(secondDigest, secondQuorum.epoch, secondQuorum),
            requestId
        );
    }

    /// @inheritdoc IDisputeManager
    function reportInvalidReceipt(
        IInferencePayment.Batch calldata batch,
        bytes calldata signature,
        Receipt calldata receipt,
        bytes32[] calldata proof,
        Endorsement calldata verdict
    ) external {
        bytes32 leaf = hashReceipt(receipt);
        if (!MerkleProof.verifyCalldata(proof, batch.receiptsRoot, leaf)) {
            revert DisputeManager__NotInBatch(leaf, batch.receiptsRoot);
        }
        address validator = ECDSA.recoverCalldata(_statements.hashBatch(batch), signature);
        _checkVerdict(Misconduct.INVALID_RESULT, validator, leaf, verdict);
        _slash(Misconduct.INVALID_RESULT, validator, receipt.requestId);
    }

    /// @inheritdoc IDisputeManager
    function reportInvalidCompletion(
        bytes32 requestId,
        Decision calldata result,
        bytes calldata signature,
        Endorsement calldata verdict
    ) external {
        if (result.failed) revert DisputeManager__NoResult(requestId);
        bytes32 digest = _hashDecision(requestId, result);
        address validator = ECDSA.recoverCalldata(digest, signature);
        _checkVerdict(Misconduct.INVALID_RESULT, validator, digest, verdict);
        _slash(Misconduct.INVALID_RESULT, validator, requestId);
    }

    /// @inheritdoc IDisputeManager
    function reportInvalidResult(
        NodeReceipt calldata receipt,
        bytes calldata nodeSignature,
        Endorsement calldata verdict
    ) external {
        bytes32 digest = hashNodeReceipt(receipt);
        address signer = ECDSA.recoverCalldata(digest, nodeSignature);
        if (signer != receipt.node) revert DisputeManager__NotOfNode(signer, receipt.node);
        _checkVerdict(Misconduct.INVALID_RESULT, signer, digest, verdict);
        _slash(Misconduct.INVALID_RESULT, signer, receipt.requestId);
    }

    /// @inheritdoc IDisputeManager
    function reportDowntime(address validator, uint32 period, Endorsement calldata verdict) external {
        bytes32 subject = bytes32(uint256(period));
        _checkVerdict(Misconduct.DOWNTIME, validator, subject, verdict);
        if (!_contains(registry.members(period), validator)) revert DisputeManager__NotAMember(validator, period);
        _slash(Misconduct.DOWNTIME, validator, subject);
    }

    /// @inheritdoc IDisputeManager
    function reportPerformances(uint32 period, Performance[] calldata performances, Endorsement calldata quorum)
        external
    {
        if (performancesReported[period]) revert DisputeManager__PeriodReported(period);
        if (period == 0 || period >= registry.currentEpoch()) revert DisputeManager__PeriodNotOver(period);
        bytes32 digest = hashPerformances(period, performances, quorum.epoch);
        Quorum.checkFresh(
            address(registry), digest, quorum.epoch, quorum.bitmap, quorum.signatures, address(0), address(0)
        );
        performancesReported[period] = true;
        emit PerformanceReported(period, performances.length);
        for (uint256 i = 0; i < performances.length; ++i) {
            Performance calldata work = performances[i];
            int64 delta = int64(uint64(work.done)) - 2 * int64(uint64(work.failed)) - 5 * int64(uint64(work.timeouts));
            registry.adjustReputation(work.validator, delta);
        }
    }

    /// @inheritdoc IDisputeManager
    function hashVerdict(Misconduct misconduct, address validator, bytes32 subject, uint32 epoch)
        public
        view
        returns (bytes32)
    {
        return _hashTypedDataV4(keccak256(abi.encode(VERDICT_TYPEHASH, misconduct, validator, subject, epoch)));
    }

    /// @inheritdoc IDisputeManager
    function hashPerformances(uint32 period, Performance[] calldata performances, uint32 epoch)
        public
        view
        returns (bytes32)
    {
        bytes32 performancesHash = keccak256(abi.encode(performances));
        return _hashTypedDataV4(keccak256(abi.encode(PERFORMANCES_TYPEHASH, period, performancesHash, epoch)));
    }

    /// @inheritdoc IDisputeManager
    function hashNodeReceipt(NodeReceipt calldata receipt) public view returns (bytes32) {
        bytes32 structHash = keccak256(abi.encode(RECEIPT_TYPEHASH, receipt));
        return MessageHashUtils.toTypedDataHash(_statements.DOMAIN_SEPARATOR(), structHash);
    }

    /// @inheritdoc IDisputeManager
    function hashReceipt(Receipt calldata receipt) public pure returns (bytes32) {
        return keccak256(bytes.concat(keccak256(abi.encode(receipt))));
    }

    function _conflictingBatches(IInferencePayment.Batch calldata first, IInferencePayment.Batch calldata second)
        private
        view
        returns (bytes32 firstDigest, bytes32 secondDigest, bytes32 subject)
    {
        firstDigest = _statements.hashBatch(first);
        secondDigest = _statements.hashBatch(second);
        if (first.gateway != second.gateway || first.nonce != second.nonce || firstDigest == secondDigest) {
            revert DisputeManager__NoConflict();
        }
        subject = keccak256(abi.encode(first.gateway, first.nonce));
    }

    function _conflictingDecisions(bytes32 requestId, Decision calldata first, Decision calldata second)
        private
        view
        returns (bytes32 firstDigest, bytes32 secondDigest)
    {
        firstDigest = _hashDecision(requestId, first);
        secondDigest = _hashDecision(requestId, second);
        if (firstDigest == secondDigest) revert DisputeManager__NoConflict();
    }

    function _hashDecision(bytes32 requestId, Decision calldata decision) private view returns (bytes32) {
        if (decision.failed) return _statements.hashFailure(requestId);
        return _statements.hashCompletion(requestId, decision.outputHash, decision.fee);
    }

    function _commonSigner(
        bytes32 firstDigest,
        bytes32 secondDigest,
        bytes calldata firstSignature,
        bytes calldata secondSignature
    ) private pure returns (address signer) {
        signer = ECDSA.recoverCalldata(firstDigest, firstSignature);
        address other = ECDSA.recoverCalldata(secondDigest, secondSignature);
        if (signer != other) revert DisputeManager__DifferentSigners(signer, other);
    }

    function _signers(bytes32 digest, uint32 epoch, Endorsement calldata quorum)
        private
        view
        returns (address[] memory)
    {
        return Quorum.checkPinned(
            address(registry), digest, epoch, quorum.bitmap, quorum.signatures, address(0), address(0)
        );
    }

    function _checkVerdict(Misconduct misconduct, address validator, bytes32 subject, Endorsement calldata verdict)
        private
        view
    {
        bytes32 digest = hashVerdict(misconduct, validator, subject, verdict.epoch);
        Quorum.checkFresh(
            address(registry), digest, verdict.epoch, verdict.bitmap, verdict.signatures, validator, validator
        );
    }

    /// @dev Slashes whoever is in both quorums and was not yet slashed for this.
    function _slashCommon(address[] memory first, address[] memory second, bytes32 subject) private {
        bool any = false;
        for (uint256 i = 0; i < first.length; ++i) {
            if (!_contains(second, first[i])) continue;
            if (registry.evidenceUsed(_evidence(Misconduct.COLLUSION, first[i], subject))) continue;
            any = true;
            _slash(Misconduct.COLLUSION, first[i], subject);
        }
        if (!any) revert DisputeManager__NoCommonSigner();
    }

    function _slash(Misconduct misconduct, address validator, bytes32 subject) private {
        bytes32 evidence = _evidence(misconduct, validator, subject);
        uint256 amount = registry.slash(validator, _tierBps(misconduct), evidence);
        emit MisconductProven(misconduct, validator, subject, amount);
    }

    function _evidence(Misconduct misconduct, address validator, bytes32 subject) private pure returns (bytes32) {
        return keccak256(abi.encode(misconduct, validator, subject));
    }

    /// @dev Part of the stake that misconduct costs, in basis points.
    function _tierBps(Misconduct misconduct) private pure returns (uint256) {
        if (misconduct == Misconduct.DOWNTIME) return 1_000;
        if (misconduct == Misconduct.INVALID_RESULT) return 3_000;
        if (misconduct == Misconduct.INVALID_SIGNATURE) return 5_000;
        return 10_000;
    }

    function _contains(address[] memory accounts, address account) private pure returns (bool found) {
        for (uint256 i = 0; i < accounts.length && !found; ++i) {
            found = accounts[i] == account;
        }
    }
}
