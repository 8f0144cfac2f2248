// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {IDisputeManager} from "../../src/interfaces/IDisputeManager.sol";
import {IInferencePayment} from "../../src/interfaces/IInferencePayment.sol";
import {IValidatorRegistry} from "../../src/interfaces/IValidatorRegistry.sol";
import {Quorum} from "../../src/libraries/Quorum.sol";
import {Battlefield} from "./Battlefield.sol";
import {Signatures} from "./Signatures.sol";

/// @title Attacks by validators that should be slashed, and on validators that should not
contract SlashingAttack is Battlefield {
    bytes4 private constant USED = IValidatorRegistry.ValidatorRegistry__EvidenceUsed.selector;

    // --- validators that should be ---

    /// @dev One validator signs two batches of one gateway under one nonce: half of its stake is gone, and with it its
    /// seat.
    function test_equivocation() public {
        bytes memory report = equivocation(batchWith(1, "a"), batchWith(1, "b"), validatorKey(0));
        accepted(stranger, address(disputes), report);
        vm.assertEq(registry.stakeOf(validatorAt(0)), STAKE / 2);
        vm.assertEq(token.balanceOf(treasurer), STAKE / 2);
        (IValidatorRegistry.State state,,, int64 reputation,) = registry.validators(validatorAt(0));
        vm.assertEq(uint8(state), uint8(IValidatorRegistry.State.JAILED));
        vm.assertTrue(reputation == -20);
        nextEpoch();
        vm.assertEq(registry.members(2).length, 4, "no member any more");
    }

    /// @dev Two quorums for two batches: whoever is in both loses everything.
    function test_collusion() public {
        IInferencePayment.Batch memory first = batchWith(1, "a");
        IInferencePayment.Batch memory second = batchWith(1, "b");
        bytes memory report = abi.encodeCall(
            disputes.reportCollusionOnBatches,
            (
                first,
                second,
                endorse(1, 7, payment.hashBatch(first)), // 0, 1, 2
                endorse(1, 28, payment.hashBatch(second)) // 2, 3, 4
            )
        );
        accepted(stranger, address(disputes), report);
        vm.assertEq(registry.stakeOf(validatorAt(2)), 0);
        vm.assertEq(registry.stakeOf(validatorAt(1)), STAKE);
        vm.assertEq(registry.stakeOf(validatorAt(3)), STAKE);
        refused(stranger, address(disputes), report, IDisputeManager.DisputeManager__NoCommonSigner.selector);
    }

    /// @dev The same evidence in another guise is the same evidence.
    function test_oneEvidenceTwice() public {
        IInferencePayment.Batch memory a = batchWith(1, "a");
        IInferencePayment.Batch memory b = batchWith(1, "b");
        IInferencePayment.Batch memory c = batchWith(1, "c");
        accepted(stranger, address(disputes), equivocation(a, b, validatorKey(0)));
        refused(stranger, address(disputes), equivocation(a, b, validatorKey(0)), USED);
        refused(stranger, address(disputes), equivocation(b, a, validatorKey(0)), USED);
        refused(stranger, address(disputes), equivocation(a, c, validatorKey(0)), USED);
        bytes memory mirrored = abi.encodeCall(
            disputes.reportConflictingBatches,
            (
                a,
                b,
                Signatures.mirrored(signatureOf(validatorKey(0), payment.hashBatch(a))),
                signatureOf(validatorKey(0), payment.hashBatch(b))
            )
        );
        refused(stranger, address(disputes), mirrored, ECDSA.ECDSAInvalidSignatureS.selector);
        vm.assertEq(registry.stakeOf(validatorAt(0)), STAKE / 2, "slashed once");
        // Another offence is another offence; and another validator's is its own.
        accepted(stranger, address(disputes), equivocation(batchWith(2, "a"), batchWith(2, "b"), validatorKey(0)));
        vm.assertEq(registry.stakeOf(validatorAt(0)), STAKE / 4);
        accepted(stranger, address(disputes), equivocation(a, b, validatorKey(1)));
        vm.assertEq(registry.stakeOf(validatorAt(1)), STAKE / 2);
    }

    function test_conflictingDecisions() public {
        bytes32 id = payment.requestId(client, 0);
        IDisputeManager.Decision memory done = IDisputeManager.Decision(false, "output", 1 ether);
        IDisputeManager.Decision memory failed = IDisputeManager.Decision(true, 0, 0);
        bytes memory signature = signatureOf(validatorKey(0), payment.hashCompletion(id, "output", 1 ether));
        bytes memory other = signatureOf(validatorKey(0), payment.hashFailure(id));
        bytes memory report = abi.encodeCall(disputes.reportConflictingDecisions, (id, done, failed, signature, other));
        accepted(stranger, address(disputes), report);
        refused(stranger, address(disputes), report, USED);
        report = abi.encodeCall(disputes.reportConflictingDecisions, (id, failed, done, other, signature));
        refused(stranger, address(disputes), report, USED);
        vm.assertEq(registry.stakeOf(validatorAt(0)), STAKE / 2);
        // That a request failed, said twice with other words beside it, is no contradiction.
        IDisputeManager.Decision memory failedToo = IDisputeManager.Decision(true, "x", 7);
        report = abi.encodeCall(disputes.reportConflictingDecisions, (id, failed, failedToo, other, other));
        refused(stranger, address(disputes), report, IDisputeManager.DisputeManager__NoConflict.selector);
    }

    /// @dev The cheat asks for its exit first. The stake is bound, and slashed, until the last day; only then it goes.
    function test_runningAway() public {
        bytes memory report = equivocation(batchWith(1, "a"), batchWith(1, "b"), validatorKey(0));
        vm.prank(validatorAt(0));
        registry.requestExit();
        uint256 exitAt = START + registry.unbondingPeriod();
        vm.warp(exitAt - 1);
        bytes memory exit = abi.encodeCall(registry.finalizeExit, ());
        bytes4 bound = IValidatorRegistry.ValidatorRegistry__StillUnbonding.selector;
        refused(validatorAt(0), address(registry), exit, bound);
        accepted(stranger, address(disputes), report);
        vm.assertEq(registry.stakeOf(validatorAt(0)), STAKE / 2);
        // It can neither come back to hide, nor leave a second time.
        bytes4 wrong = IValidatorRegistry.ValidatorRegistry__WrongState.selector;
        refused(validatorAt(0), address(registry), abi.encodeCall(registry.requestExit, ()), wrong);
        refused(validatorAt(0), address(registry), abi.encodeCall(registry.registerValidator, (STAKE)), wrong);
        refused(validatorAt(0), address(registry), abi.encodeCall(registry.addStake, (1)), wrong);
        vm.warp(exitAt);
        accepted(validatorAt(0), address(registry), exit);
        vm.assertEq(token.balanceOf(validatorAt(0)), STAKE / 2, "what was left");
        refused(validatorAt(0), address(registry), exit, wrong);
    }

    /// @dev The last signature that counts is given at the end of a request that began at the end of an epoch: there is
    /// still the whole window to bring evidence.
    function test_theLastSignature() public {
        vm.prank(validatorAt(0));
        registry.requestExit(); // as early as can be: it is a member of epoch 1 all the same
        vm.warp(registry.validUntil(1));
        IInferencePayment.Request memory request = requestOf(10 ether);
        request.expiry = uint64(registry.validUntil(1) + payment.MAX_REQUEST_TIME());
        initiate(request);
        vm.warp(request.expiry);
        accepted(stranger, address(payment), completeCall(request, 10 ether));
        (,, uint64 exitAt,,) = registry.validators(validatorAt(0));
        vm.assertGe(exitAt, request.expiry + registry.disputeWindow(), "the window to bring evidence");
        bytes32 id = payment.requestId(client, 0);
        bytes memory report = abi.encodeCall(
            disputes.reportConflictingDecisions,
            (
                id,
                IDisputeManager.Decision(false, "output", 10 ether),
                IDisputeManager.Decision(true, 0, 0),
                signatureOf(validatorKey(0), payment.hashCompletion(id, "output", 10 ether)),
                signatureOf(validatorKey(0), payment.hashFailure(id))
            )
        );
        vm.warp(request.expiry + registry.disputeWindow() - 1);
        accepted(stranger, address(disputes), report);
        vm.assertEq(registry.stakeOf(validatorAt(0)), STAKE / 2);
    }

    /// @dev A jailed validator leaves as slowly as any other, and what it adds can be slashed as well.
    function test_jailIsNoWayOut() public {
        accepted(stranger, address(disputes), equivocation(batchWith(1, "a"), batchWith(1, "b"), validatorKey(0)));
        vm.prank(validatorAt(0));
        registry.requestExit();
        bytes memory exit = abi.encodeCall(registry.finalizeExit, ());
        bytes4 bound = IValidatorRegistry.ValidatorRegistry__StillUnbonding.selector;
        refused(validatorAt(0), address(registry), exit, bound);
        accepted(stranger, address(disputes), equivocation(batchWith(2, "a"), batchWith(2, "b"), validatorKey(0)));
        vm.assertEq(registry.stakeOf(validatorAt(0)), STAKE / 4);
    }

    /// @dev Who was slashed and comes back begins with a new stake, and the old evidence stays used.
    function test_comingBack() public {
        bytes memory report = equivocation(batchWith(1, "a"), batchWith(1, "b"), validatorKey(0));
        accepted(stranger, address(disputes), report);
        vm.prank(validatorAt(0));
        registry.requestExit();
        vm.warp(START + registry.unbondingPeriod());
        vm.prank(validatorAt(0));
        registry.finalizeExit();
        registerValidator(validatorKey(0), STAKE);
        refused(stranger, address(disputes), report, USED);
        vm.assertEq(registry.stakeOf(validatorAt(0)), STAKE);
    }

    // --- validators that should not be ---

    function test_framing() public {
        IInferencePayment.Batch memory a = batchWith(1, "a");
        IInferencePayment.Batch memory b = batchWith(1, "b");
        bytes4 none = IDisputeManager.DisputeManager__NoConflict.selector;
        // The same batch twice, two nonces, two gateways: no contradiction.
        refused(attacker, address(disputes), equivocation(a, a, validatorKey(0)), none);
        refused(attacker, address(disputes), equivocation(a, batchWith(2, "a"), validatorKey(0)), none);
        b.gateway = accomplice;
        refused(attacker, address(disputes), equivocation(a, b, validatorKey(0)), none);
        b.gateway = gateway;
        // Two signers.
        bytes memory report = abi.encodeCall(
            disputes.reportConflictingBatches,
            (
                a,
                b,
                signatureOf(validatorKey(0), payment.hashBatch(a)),
                signatureOf(validatorKey(1), payment.hashBatch(b))
            )
        );
        refused(attacker, address(disputes), report, IDisputeManager.DisputeManager__DifferentSigners.selector);
        // Somebody who never was a validator.
        bytes4 wrong = IValidatorRegistry.ValidatorRegistry__WrongState.selector;
        refused(attacker, address(disputes), equivocation(a, b, ATTACKER_KEY), wrong);
        // Signatures that recover to nobody.
        report = abi.encodeCall(disputes.reportConflictingBatches, (a, b, new bytes(65), new bytes(65)));
        refused(attacker, address(disputes), report, ECDSA.ECDSAInvalidSignature.selector);
        report = abi.encodeCall(disputes.reportConflictingBatches, (a, b, "", ""));
        refused(attacker, address(disputes), report, ECDSA.ECDSAInvalidSignatureLength.selector);
        assertUnscathed();
    }

    /// @dev What was signed on another chain is another statement: one of each is no contradiction.
    function test_framingFromAnotherChain() public {
        IInferencePayment.Batch memory a = batchWith(1, "a");
        IInferencePayment.Batch memory b = batchWith(1, "b");
        vm.chainId(CHAIN + 1);
        bytes memory elsewhere = signatureOf(validatorKey(0), payment.hashBatch(b));
        vm.chainId(CHAIN);
        bytes memory here = signatureOf(validatorKey(0), payment.hashBatch(a));
        bytes memory report = abi.encodeCall(disputes.reportConflictingBatches, (a, b, here, elsewhere));
        refused(attacker, address(disputes), report, IDisputeManager.DisputeManager__DifferentSigners.selector);
        assertUnscathed();
    }

    /// @dev A verdict takes a quorum of those who may still sign, without the accused, about this and nobody else.
    function test_verdicts() public {
        nextEpoch();
        address accused = validatorAt(4);
        bytes32 period = bytes32(uint256(1));
        IDisputeManager.Misconduct downtime = IDisputeManager.Misconduct.DOWNTIME;
        bytes32 digest = disputes.hashVerdict(downtime, accused, period, 2);
        IDisputeManager.Endorsement memory verdict = endorse(2, 3, digest);
        bytes memory report = abi.encodeCall(disputes.reportDowntime, (accused, 1, verdict));
        refused(attacker, address(disputes), report, Quorum.Quorum__TooFewSigners.selector);
        verdict = endorse(2, 19, digest); // the accused is the third
        report = abi.encodeCall(disputes.reportDowntime, (accused, 1, verdict));
        refused(attacker, address(disputes), report, Quorum.Quorum__SignerExcluded.selector);
        verdict = endorse(2, 7, digest);
        report = abi.encodeCall(disputes.reportDowntime, (validatorAt(3), 1, verdict));
        refused(attacker, address(disputes), report, Quorum.Quorum__BadSignature.selector);
        report = abi.encodeCall(disputes.reportDowntime, (accused, 2, verdict));
        refused(attacker, address(disputes), report, Quorum.Quorum__BadSignature.selector);
        verdict.epoch = 1;
        report = abi.encodeCall(disputes.reportDowntime, (accused, 1, verdict));
        refused(attacker, address(disputes), report, Quorum.Quorum__BadSignature.selector);
        verdict.epoch = 2;
        report = abi.encodeCall(disputes.reportDowntime, (accused, 1, verdict));
        uint256 snapshot = vm.snapshotState();
        vm.warp(uint256(registry.validUntil(2)) + 1);
        refused(attacker, address(disputes), report, Quorum.Quorum__EpochStale.selector);
        vm.revertToState(snapshot);
        accepted(attacker, address(disputes), report);
        refused(attacker, address(disputes), report, USED);
        vm.assertEq(registry.stakeOf(accused), (STAKE * 9) / 10);
        // A verdict on one misconduct is none on another.
        bytes32 id = payment.requestId(client, 0);
        IDisputeManager.Decision memory result = IDisputeManager.Decision(false, "output", 1 ether);
        bytes32 completion = payment.hashCompletion(id, "output", 1 ether);
        verdict = endorse(2, 7, disputes.hashVerdict(downtime, validatorAt(3), completion, 2));
        bytes memory signature = signatureOf(validatorKey(3), completion);
        report = abi.encodeCall(disputes.reportInvalidCompletion, (id, result, signature, verdict));
        refused(attacker, address(disputes), report, Quorum.Quorum__BadSignature.selector);
    }

    /// @dev What a validator signed is what it answers for: a receipt that is not in its batch is not its receipt.
    function test_framingByAReceipt() public {
        IDisputeManager.Receipt memory receipt =
            IDisputeManager.Receipt(bytes32("id"), bytes32("channel"), node, 1 ether, "model", "input", "output");
        bytes32 leaf = disputes.hashReceipt(receipt);
        IInferencePayment.Batch memory batch = batchWith(1, "another root");
        bytes memory signature = signatureOf(validatorKey(3), payment.hashBatch(batch));
        bytes32 digest = disputes.hashVerdict(IDisputeManager.Misconduct.INVALID_RESULT, validatorAt(3), leaf, 1);
        IDisputeManager.Endorsement memory verdict = endorse(1, 7, digest);
        bytes memory report =
            abi.encodeCall(disputes.reportInvalidReceipt, (batch, signature, receipt, new bytes32[](0), verdict));
        refused(attacker, address(disputes), report, IDisputeManager.DisputeManager__NotInBatch.selector);
        // Changed so that the receipt is in it, the batch is not the one that was signed.
        batch.receiptsRoot = leaf;
        report = abi.encodeCall(disputes.reportInvalidReceipt, (batch, signature, receipt, new bytes32[](0), verdict));
        vm.prank(attacker);
        (bool success,) = address(disputes).call(report);
        vm.assertFalse(success, "the attack succeeded");
        signature = signatureOf(validatorKey(3), payment.hashBatch(batch));
        report = abi.encodeCall(disputes.reportInvalidReceipt, (batch, signature, receipt, new bytes32[](0), verdict));
        accepted(attacker, address(disputes), report);
        refused(attacker, address(disputes), report, USED);
        vm.assertEq(registry.stakeOf(validatorAt(3)), (STAKE * 7) / 10);
    }

    /// @dev Slashing takes what is left, never more, however often and in whatever order.
    function testFuzz_slashesNeverExceedStake(uint256 seed) public {
        uint256 taken = 0;
        for (uint256 i = 0; i < 8; ++i) {
            uint256 before = registry.stakeOf(validatorAt(0));
            if ((seed >> i) & 1 == 0) {
                uint64 nonce = uint64(10 + i);
                bytes memory report = equivocation(batchWith(nonce, "a"), batchWith(nonce, "b"), validatorKey(0));
                accepted(stranger, address(disputes), report);
                vm.assertEq(registry.stakeOf(validatorAt(0)), before - before / 2);
            } else {
                bytes32 id = bytes32(i);
                bytes32 completion = payment.hashCompletion(id, "output", 1 ether);
                IDisputeManager.Endorsement memory verdict = endorse(
                    1,
                    14,
                    disputes.hashVerdict(IDisputeManager.Misconduct.INVALID_RESULT, validatorAt(0), completion, 1)
                );
                bytes memory report = abi.encodeCall(
                    disputes.reportInvalidCompletion,
                    (
                        id,
                        IDisputeManager.Decision(false, "output", 1 ether),
                        signatureOf(validatorKey(0), completion),
                        verdict
                    )
                );
                accepted(stranger, address(disputes), report);
                vm.assertEq(registry.stakeOf(validatorAt(0)), before - (before * 3_000) / 10_000);
            }
            taken += before - registry.stakeOf(validatorAt(0));
        }
        vm.assertEq(token.balanceOf(treasurer), taken);
        vm.assertEq(taken + registry.stakeOf(validatorAt(0)), STAKE);
    }

    // --- inside ---

    function batchWith(uint64 nonce, bytes32 root) private view returns (IInferencePayment.Batch memory) {
        return IInferencePayment.Batch(gateway, nonce, registry.currentEpoch(), 1, root, 0, 0, 0);
    }

    function equivocation(IInferencePayment.Batch memory first, IInferencePayment.Batch memory second, uint256 key)
        private
        view
        returns (bytes memory)
    {
        return abi.encodeCall(
            disputes.reportConflictingBatches,
            (first, second, signatureOf(key, payment.hashBatch(first)), signatureOf(key, payment.hashBatch(second)))
        );
    }

    function assertUnscathed() private view {
        for (uint256 i = 0; i < VALIDATORS; ++i) {
            vm.assertEq(registry.stakeOf(validatorAt(i)), STAKE, "slashed without cause");
        }
        vm.assertEq(token.balanceOf(treasurer), 0);
    }
}
