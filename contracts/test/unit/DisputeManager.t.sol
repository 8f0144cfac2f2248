// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {DisputeManager} from "../../src/DisputeManager.sol";
import {IDisputeManager} from "../../src/interfaces/IDisputeManager.sol";
import {IInferencePayment} from "../../src/interfaces/IInferencePayment.sol";
import {IValidatorRegistry} from "../../src/interfaces/IValidatorRegistry.sol";
import {EpochSnapshot} from "../../src/libraries/EpochSnapshot.sol";
import {Quorum} from "../../src/libraries/Quorum.sol";
import {Network} from "../Network.sol";

contract DisputeManagerTest is Network {
    bytes32 private constant ID = keccak256("request");

    // --- constructor ---

    function test_constructor() public view {
        vm.assertEq(address(disputes.payment()), address(payment));
        vm.assertEq(address(disputes.registry()), address(registry));
    }

    function test_revert_constructor() public {
        vm.expectRevert(IDisputeManager.DisputeManager__ZeroAddress.selector);
        new DisputeManager(IInferencePayment(address(0)));
    }

    // --- conflicting batches ---

    function test_reportConflictingBatches() public {
        (IInferencePayment.Batch memory first, IInferencePayment.Batch memory second) = twoBatches();
        bytes32 subject = keccak256(abi.encode(gateway, uint64(7)));
        (bytes memory a, bytes memory b) = bothSigned(first, second, 3);
        vm.prank(stranger);
        vm.expectEmit(address(disputes));
        emit IDisputeManager.MisconductProven(
            IDisputeManager.Misconduct.INVALID_SIGNATURE, validatorAt(3), subject, STAKE / 2
        );
        disputes.reportConflictingBatches(first, second, a, b);
        expectStake(3, STAKE / 2);
        vm.assertEq(token.balanceOf(treasurer), STAKE / 2);
        // Once for each nonce, however many batches there are of it.
        second.count = 99;
        (a, b) = bothSigned(first, second, 3);
        vm.expectPartialRevert(IValidatorRegistry.ValidatorRegistry__EvidenceUsed.selector);
        disputes.reportConflictingBatches(first, second, a, b);
    }

    function testFuzz_reportConflictingBatches(
        IInferencePayment.Batch memory first,
        IInferencePayment.Batch memory second,
        uint8 i
    ) public {
        (second.gateway, second.nonce) = (first.gateway, first.nonce);
        (bytes memory a, bytes memory b) = bothSigned(first, second, i % VALIDATORS);
        disputes.reportConflictingBatches(first, second, a, b);
        expectStake(i % VALIDATORS, STAKE / 2);
    }

    function test_revert_reportConflictingBatches() public {
        (IInferencePayment.Batch memory first, IInferencePayment.Batch memory second) = twoBatches();
        (bytes memory a, bytes memory b) = bothSigned(first, second, 3);
        vm.expectRevert(IDisputeManager.DisputeManager__NoConflict.selector);
        disputes.reportConflictingBatches(first, first, a, a);
        second.nonce = 8;
        (a, b) = bothSigned(first, second, 3);
        vm.expectRevert(IDisputeManager.DisputeManager__NoConflict.selector);
        disputes.reportConflictingBatches(first, second, a, b);
        (second.nonce, second.gateway) = (7, stranger);
        (a, b) = bothSigned(first, second, 3);
        vm.expectRevert(IDisputeManager.DisputeManager__NoConflict.selector);
        disputes.reportConflictingBatches(first, second, a, b);
        second.gateway = gateway;
        b = signatureOf(validatorKey(2), payment.hashBatch(second));
        vm.expectRevert(
            abi.encodeWithSelector(
                IDisputeManager.DisputeManager__DifferentSigners.selector, validatorAt(3), validatorAt(2)
            )
        );
        disputes.reportConflictingBatches(first, second, a, b);
        vm.expectRevert(abi.encodeWithSelector(ECDSA.ECDSAInvalidSignatureLength.selector, 0));
        disputes.reportConflictingBatches(first, second, a, hex"");
        (a, b) = bothSigned(first, second, 9); // no validator
        vm.expectRevert(
            abi.encodeWithSelector(
                IValidatorRegistry.ValidatorRegistry__WrongState.selector, validatorAt(9), IValidatorRegistry.State.NONE
            )
        );
        disputes.reportConflictingBatches(first, second, a, b);
    }

    // --- conflicting decisions ---

    function test_reportConflictingDecisions() public {
        IDisputeManager.Decision memory done = IDisputeManager.Decision(false, "output", 5);
        IDisputeManager.Decision memory failed = IDisputeManager.Decision(true, 0, 0);
        bytes memory a = signatureOf(validatorKey(1), payment.hashCompletion(ID, "output", 5));
        bytes memory b = signatureOf(validatorKey(1), payment.hashFailure(ID));
        disputes.reportConflictingDecisions(ID, done, failed, a, b);
        expectStake(1, STAKE / 2);
    }

    function testFuzz_reportConflictingDecisions(bytes32 id, bytes32 output, uint96 fee, uint96 otherFee) public {
        IDisputeManager.Decision memory first = IDisputeManager.Decision(false, output, fee);
        IDisputeManager.Decision memory second = IDisputeManager.Decision(false, output, otherFee);
        bytes memory a = signatureOf(validatorKey(4), payment.hashCompletion(id, output, fee));
        bytes memory b = signatureOf(validatorKey(4), payment.hashCompletion(id, output, otherFee));
        if (fee == otherFee) vm.expectRevert(IDisputeManager.DisputeManager__NoConflict.selector);
        disputes.reportConflictingDecisions(id, first, second, a, b);
        expectStake(4, fee == otherFee ? STAKE : STAKE / 2);
    }

    function test_revert_reportConflictingDecisions() public {
        // Two failures are one, whatever else is written beside them.
        bytes memory a = signatureOf(validatorKey(1), payment.hashFailure(ID));
        vm.expectRevert(IDisputeManager.DisputeManager__NoConflict.selector);
        disputes.reportConflictingDecisions(
            ID, IDisputeManager.Decision(true, "x", 1), IDisputeManager.Decision(true, "y", 2), a, a
        );
    }

    // --- collusion ---

    function test_reportCollusionOnBatches() public {
        (IInferencePayment.Batch memory first, IInferencePayment.Batch memory second) = twoBatches();
        disputes.reportCollusionOnBatches(
            first,
            second,
            endorse(1, 0x07, payment.hashBatch(first)), // 0, 1, 2
            endorse(1, 0x0e, payment.hashBatch(second)) // 1, 2, 3
        );
        expectStake(0, STAKE);
        expectStake(1, 0);
        expectStake(2, 0);
        expectStake(3, STAKE);
        vm.assertEq(token.balanceOf(treasurer), 2 * STAKE);
        // Who was slashed for this is passed over: the rest can't hide behind them.
        second.count = 99;
        disputes.reportCollusionOnBatches(
            first, second, endorse(1, 0x07, payment.hashBatch(first)), endorse(1, 0x07, payment.hashBatch(second))
        );
        expectStake(0, 0);
    }

    function testFuzz_reportCollusionOnDecisions(uint8 firstBitmap, uint8 secondBitmap, bytes32 id) public {
        firstBitmap = firstBitmap & 0x1f;
        secondBitmap = secondBitmap & 0x1f;
        IDisputeManager.Endorsement memory a = endorse(1, firstBitmap, payment.hashCompletion(id, "output", 5));
        IDisputeManager.Endorsement memory b = endorse(1, secondBitmap, payment.hashFailure(id));
        bool quorums = bits(firstBitmap) >= 3 && bits(secondBitmap) >= 3;
        if (!quorums) vm.expectPartialRevert(Quorum.Quorum__TooFewSigners.selector);
        disputes.reportCollusionOnDecisions(
            id, IDisputeManager.Decision(false, "output", 5), IDisputeManager.Decision(true, 0, 0), a, b
        );
        for (uint256 i = 0; i < VALIDATORS; ++i) {
            bool both = ((firstBitmap & secondBitmap) >> i) & 1 == 1;
            expectStake(i, quorums && both ? 0 : STAKE);
        }
    }

    function test_revert_reportCollusion() public {
        (IInferencePayment.Batch memory first, IInferencePayment.Batch memory second) = twoBatches();
        IDisputeManager.Endorsement memory a = endorse(1, 0x07, payment.hashBatch(first));
        vm.expectRevert(IDisputeManager.DisputeManager__NoConflict.selector);
        disputes.reportCollusionOnBatches(first, first, a, a);
        // A later epoch of other validators: two quorums without a common member.
        for (uint256 i = 0; i < VALIDATORS; ++i) {
            vm.prank(validatorAt(i));
            registry.requestExit();
        }
        for (uint256 i = 10; i < 13; ++i) {
            registerValidator(validatorKey(i), STAKE);
        }
        second.epoch = nextEpoch();
        bytes memory others = bytes.concat(
            signatureOf(validatorKey(10), payment.hashBatch(second)),
            signatureOf(validatorKey(11), payment.hashBatch(second)),
            signatureOf(validatorKey(12), payment.hashBatch(second))
        );
        IDisputeManager.Endorsement memory b = IDisputeManager.Endorsement(2, 7, others);
        vm.expectRevert(IDisputeManager.DisputeManager__NoCommonSigner.selector);
        disputes.reportCollusionOnBatches(first, second, a, b);
        a = endorse(1, 0x07, payment.hashFailure(ID));
        vm.expectRevert(IDisputeManager.DisputeManager__NoConflict.selector);
        disputes.reportCollusionOnDecisions(
            ID, IDisputeManager.Decision(true, 0, 0), IDisputeManager.Decision(true, 0, 0), a, a
        );
    }

    // --- invalid results ---

    function test_reportInvalidReceipt() public {
        (IInferencePayment.Batch memory batch, bytes32[] memory proof) = batchWith(receipt(), keccak256("sibling"));
        bytes memory signature = signatureOf(validatorKey(0), payment.hashBatch(batch));
        bytes32 leaf = disputes.hashReceipt(receipt());
        IDisputeManager.Endorsement memory verdict = verdictOn(IDisputeManager.Misconduct.INVALID_RESULT, 0, leaf, 0x0e);
        vm.expectEmit(address(disputes));
        emit IDisputeManager.MisconductProven(
            IDisputeManager.Misconduct.INVALID_RESULT, validatorAt(0), ID, STAKE * 3 / 10
        );
        disputes.reportInvalidReceipt(batch, signature, receipt(), proof, verdict);
        expectStake(0, STAKE * 7 / 10);
        vm.expectPartialRevert(IValidatorRegistry.ValidatorRegistry__EvidenceUsed.selector);
        disputes.reportInvalidReceipt(batch, signature, receipt(), proof, verdict);
    }

    function testFuzz_reportInvalidReceipt(IDisputeManager.Receipt memory wrong, bytes32 sibling, uint8 i) public {
        uint256 accused = i % VALIDATORS;
        (IInferencePayment.Batch memory batch, bytes32[] memory proof) = batchWith(wrong, sibling);
        bytes memory signature = signatureOf(validatorKey(accused), payment.hashBatch(batch));
        disputes.reportInvalidReceipt(
            batch,
            signature,
            wrong,
            proof,
            verdictOn(
                IDisputeManager.Misconduct.INVALID_RESULT,
                accused,
                keccak256(abi.encode(keccak256(abi.encode(wrong)))),
                0x1f ^ (1 << accused)
            )
        );
        expectStake(accused, STAKE * 7 / 10);
    }

    function test_revert_reportInvalidReceipt() public {
        (IInferencePayment.Batch memory batch, bytes32[] memory proof) = batchWith(receipt(), keccak256("sibling"));
        bytes memory signature = signatureOf(validatorKey(0), payment.hashBatch(batch));
        bytes32 leaf = disputes.hashReceipt(receipt());
        IDisputeManager.Receipt memory other = receipt();
        other.fee += 1;
        IDisputeManager.Endorsement memory verdict = verdictOn(IDisputeManager.Misconduct.INVALID_RESULT, 0, leaf, 0x0e);
        vm.expectRevert(
            abi.encodeWithSelector(
                IDisputeManager.DisputeManager__NotInBatch.selector, disputes.hashReceipt(other), batch.receiptsRoot
            )
        );
        disputes.reportInvalidReceipt(batch, signature, other, proof, verdict);
        // The accused does not judge; a verdict on one validator is none on another.
        verdict = verdictOn(IDisputeManager.Misconduct.INVALID_RESULT, 0, leaf, 0x07);
        vm.expectRevert(abi.encodeWithSelector(Quorum.Quorum__SignerExcluded.selector, validatorAt(0)));
        disputes.reportInvalidReceipt(batch, signature, receipt(), proof, verdict);
        verdict = verdictOn(IDisputeManager.Misconduct.INVALID_RESULT, 4, leaf, 0x0e);
        vm.expectPartialRevert(Quorum.Quorum__BadSignature.selector);
        disputes.reportInvalidReceipt(batch, signature, receipt(), proof, verdict);
        verdict = verdictOn(IDisputeManager.Misconduct.DOWNTIME, 0, leaf, 0x0e);
        vm.expectPartialRevert(Quorum.Quorum__BadSignature.selector);
        disputes.reportInvalidReceipt(batch, signature, receipt(), proof, verdict);
        vm.warp(START + 2 days + 1);
        verdict = verdictOn(IDisputeManager.Misconduct.INVALID_RESULT, 0, leaf, 0x0e);
        vm.expectRevert(abi.encodeWithSelector(Quorum.Quorum__EpochStale.selector, 1, START + 2 days));
        disputes.reportInvalidReceipt(batch, signature, receipt(), proof, verdict);
    }

    function test_reportInvalidCompletion() public {
        bytes32 digest = payment.hashCompletion(ID, "output", 5);
        bytes memory signature = signatureOf(validatorKey(2), digest);
        IDisputeManager.Endorsement memory verdict =
            verdictOn(IDisputeManager.Misconduct.INVALID_RESULT, 2, digest, 0x1a);
        disputes.reportInvalidCompletion(ID, IDisputeManager.Decision(false, "output", 5), signature, verdict);
        expectStake(2, STAKE * 7 / 10);
    }

    function testFuzz_reportInvalidCompletion(bytes32 id, bytes32 output, uint96 fee) public {
        bytes32 digest = payment.hashCompletion(id, output, fee);
        bytes memory signature = signatureOf(validatorKey(2), digest);
        IDisputeManager.Endorsement memory verdict =
            verdictOn(IDisputeManager.Misconduct.INVALID_RESULT, 2, digest, 0x1b);
        disputes.reportInvalidCompletion(id, IDisputeManager.Decision(false, output, fee), signature, verdict);
        expectStake(2, STAKE * 7 / 10);
    }

    function test_revert_reportInvalidCompletion() public {
        bytes32 digest = payment.hashFailure(ID);
        bytes memory signature = signatureOf(validatorKey(2), digest);
        IDisputeManager.Endorsement memory verdict =
            verdictOn(IDisputeManager.Misconduct.INVALID_RESULT, 2, digest, 0x1a);
        vm.expectRevert(abi.encodeWithSelector(IDisputeManager.DisputeManager__NoResult.selector, ID));
        disputes.reportInvalidCompletion(ID, IDisputeManager.Decision(true, 0, 0), signature, verdict);
    }

    // --- downtime ---

    function test_reportDowntime() public {
        disputes.reportDowntime(
            validatorAt(0), 1, verdictOn(IDisputeManager.Misconduct.DOWNTIME, 0, bytes32(uint256(1)), 0x0e)
        );
        expectStake(0, STAKE * 9 / 10);
    }

    function testFuzz_reportDowntime(uint8 i, uint8 epochs) public {
        uint256 accused = i % VALIDATORS;
        uint32 period = 1;
        for (; period <= epochs % 4; ++period) {
            nextEpoch();
        }
        disputes.reportDowntime(
            validatorAt(accused),
            period,
            verdictOn(IDisputeManager.Misconduct.DOWNTIME, accused, bytes32(uint256(period)), 0x1f ^ (1 << accused))
        );
        expectStake(accused, STAKE * 9 / 10);
    }

    function test_revert_reportDowntime() public {
        address late = registerValidator(validatorKey(5), STAKE);
        IDisputeManager.Endorsement memory verdict =
            verdictOn(IDisputeManager.Misconduct.DOWNTIME, 5, bytes32(uint256(1)), 0x0e);
        vm.expectRevert(abi.encodeWithSelector(IDisputeManager.DisputeManager__NotAMember.selector, late, 1));
        disputes.reportDowntime(late, 1, verdict);
        verdict = verdictOn(IDisputeManager.Misconduct.DOWNTIME, 0, bytes32(uint256(2)), 0x0e);
        vm.expectRevert(abi.encodeWithSelector(EpochSnapshot.EpochSnapshot__UnknownEpoch.selector, 2));
        disputes.reportDowntime(validatorAt(0), 2, verdict);
    }

    // --- performances ---

    function test_reportPerformances() public {
        nextEpoch();
        IDisputeManager.Performance[] memory work = new IDisputeManager.Performance[](2);
        work[0] = IDisputeManager.Performance(validatorAt(0), 100, 3, 2);
        work[1] = IDisputeManager.Performance(validatorAt(1), 0, 0, 7);
        disputes.reportPerformances(1, work, endorse(2, 0x07, disputes.hashPerformances(1, work, 2)));
        expectReputation(0, 84);
        expectReputation(1, -35);
        vm.assertTrue(disputes.performancesReported(1));
    }

    function testFuzz_reportPerformances(uint32 done, uint32 failed, uint32 timeouts) public {
        nextEpoch();
        IDisputeManager.Performance[] memory work = new IDisputeManager.Performance[](1);
        work[0] = IDisputeManager.Performance(validatorAt(0), done, failed, timeouts);
        disputes.reportPerformances(1, work, endorse(2, 0x07, disputes.hashPerformances(1, work, 2)));
        expectReputation(0, int256(uint256(done)) - 2 * int256(uint256(failed)) - 5 * int256(uint256(timeouts)));
    }

    function test_revert_reportPerformances() public {
        IDisputeManager.Performance[] memory work = new IDisputeManager.Performance[](0);
        IDisputeManager.Endorsement memory quorum = endorse(1, 0x07, disputes.hashPerformances(1, work, 1));
        for (uint32 period = 0; period < 2; ++period) {
            vm.expectRevert(abi.encodeWithSelector(IDisputeManager.DisputeManager__PeriodNotOver.selector, period));
            disputes.reportPerformances(period, work, quorum);
        }
        nextEpoch();
        disputes.reportPerformances(1, work, quorum);
        vm.expectRevert(abi.encodeWithSelector(IDisputeManager.DisputeManager__PeriodReported.selector, 1));
        disputes.reportPerformances(1, work, quorum);
    }

    // --- digests ---

    function test_hashVerdict() public view {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("NCN DisputeManager"),
                keccak256("1"),
                block.chainid,
                address(disputes)
            )
        );
        bytes32 message = keccak256(
            abi.encode(
                keccak256("Verdict(uint8 misconduct,address validator,bytes32 subject,uint32 epoch)"),
                uint8(1),
                node,
                ID,
                uint32(3)
            )
        );
        vm.assertEq(
            disputes.hashVerdict(IDisputeManager.Misconduct.INVALID_RESULT, node, ID, 3),
            keccak256(abi.encodePacked(hex"1901", domain, message))
        );
    }

    // --- inside ---

    function twoBatches()
        private
        view
        returns (IInferencePayment.Batch memory first, IInferencePayment.Batch memory second)
    {
        IInferencePayment.Claim[] memory claims = new IInferencePayment.Claim[](0);
        IInferencePayment.Credit[] memory credits = new IInferencePayment.Credit[](0);
        first = batchOf(gateway, 7, 1, claims, credits);
        second = batchOf(gateway, 7, 2, claims, credits);
    }

    function bothSigned(IInferencePayment.Batch memory first, IInferencePayment.Batch memory second, uint256 i)
        private
        view
        returns (bytes memory, bytes memory)
    {
        return (
            signatureOf(validatorKey(i), payment.hashBatch(first)),
            signatureOf(validatorKey(i), payment.hashBatch(second))
        );
    }

    function receipt() private view returns (IDisputeManager.Receipt memory) {
        return IDisputeManager.Receipt(ID, "channel", node, 5, "model", "input", "output");
    }

    /// @dev A batch of two receipts, of which one is known only by its leaf.
    function batchWith(IDisputeManager.Receipt memory one, bytes32 sibling)
        private
        view
        returns (IInferencePayment.Batch memory batch, bytes32[] memory proof)
    {
        (batch,) = twoBatches();
        bytes32 leaf = keccak256(bytes.concat(keccak256(abi.encode(one))));
        batch.receiptsRoot =
            leaf < sibling ? keccak256(abi.encode(leaf, sibling)) : keccak256(abi.encode(sibling, leaf));
        proof = new bytes32[](1);
        proof[0] = sibling;
    }

    function verdictOn(IDisputeManager.Misconduct misconduct, uint256 accused, bytes32 subject, uint256 bitmap)
        private
        view
        returns (IDisputeManager.Endorsement memory)
    {
        uint32 epoch = registry.currentEpoch();
        return endorse(epoch, bitmap, disputes.hashVerdict(misconduct, validatorAt(accused), subject, epoch));
    }

    function expectStake(uint256 i, uint256 expected) private view {
        vm.assertEq(registry.stakeOf(validatorAt(i)), expected, "stake");
    }

    function expectReputation(uint256 i, int256 expected) private view {
        (,,, int64 reputation,) = registry.validators(validatorAt(i));
        vm.assertEq(int256(reputation), expected);
    }

    function bits(uint256 value) private pure returns (uint256 count) {
        for (; value != 0; value >>= 1) {
            count += value & 1;
        }
    }
}
