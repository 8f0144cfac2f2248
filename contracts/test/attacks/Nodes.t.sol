// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {IDisputeManager} from "../../src/interfaces/IDisputeManager.sol";
import {IValidatorRegistry} from "../../src/interfaces/IValidatorRegistry.sol";
import {Quorum} from "../../src/libraries/Quorum.sol";
import {DisputeManager} from "../../src/DisputeManager.sol";
import {InferencePayment} from "../../src/InferencePayment.sol";
import {NodeNetwork} from "../NodeNetwork.sol";
import {Signatures} from "./Signatures.sol";

/// @title Attacks on compute nodes that should not be slashed, and by those that should
contract NodesAttack is NodeNetwork {
    bytes4 private constant USED = IValidatorRegistry.ValidatorRegistry__EvidenceUsed.selector;

    /// @dev Another key's signature under a receipt that names the node; the node's own under another receipt.
    function test_anothersSignature() public {
        IDisputeManager.NodeReceipt memory receipt = receiptOf(worker);
        bytes memory forged = signatureOf(ATTACKER_KEY, digestOf(receipt));
        IDisputeManager.Endorsement memory verdict = verdictOn(receipt, 7);
        vm.prank(attacker);
        vm.expectRevert(abi.encodeWithSelector(IDisputeManager.DisputeManager__NotOfNode.selector, attacker, worker));
        disputes.reportInvalidResult(receipt, forged, verdict);
        bytes memory signature = signatureOf(NODE_KEY, digestOf(receipt));
        bytes4 notOfNode = IDisputeManager.DisputeManager__NotOfNode.selector;
        receipt.outputHash = "what it never said";
        refused(attacker, address(disputes), reportCall(receipt, signature, verdictOn(receipt, 7)), notOfNode);
        // The node named as another one: the attacker's receipt does not fall on the worker.
        receipt = receiptOf(attacker);
        forged = signatureOf(ATTACKER_KEY, digestOf(receipt));
        verdict = verdictOn(receipt, 7);
        receipt.node = worker;
        refused(attacker, address(disputes), reportCall(receipt, forged, verdict), notOfNode);
        assertUnscathed();
    }

    /// @dev What the node signed for another deployment, on another chain, or for the dispute manager's own domain.
    function test_anotherDomain() public {
        IDisputeManager.NodeReceipt memory receipt = receiptOf(worker);
        bytes4 notOfNode = IDisputeManager.DisputeManager__NotOfNode.selector;
        InferencePayment twin = new InferencePayment(token, registry, timelock, guardian, paymentConfig());
        bytes32 elsewhere = new DisputeManager(twin).hashNodeReceipt(receipt);
        vm.assertTrue(elsewhere != digestOf(receipt));
        bytes memory signature = signatureOf(NODE_KEY, elsewhere);
        refused(attacker, address(disputes), reportCall(receipt, signature, verdictOn(receipt, 7)), notOfNode);
        vm.chainId(CHAIN + 1);
        signature = signatureOf(NODE_KEY, digestOf(receipt));
        vm.chainId(CHAIN);
        refused(attacker, address(disputes), reportCall(receipt, signature, verdictOn(receipt, 7)), notOfNode);
        assertUnscathed();
    }

    /// @dev The verdict takes a fresh quorum of the registry's, about this node, this receipt and this misconduct.
    function test_verdicts() public {
        IDisputeManager.NodeReceipt memory receipt = receiptOf(worker);
        bytes32 digest = digestOf(receipt);
        bytes memory signature = signatureOf(NODE_KEY, digest);
        bytes memory report = reportCall(receipt, signature, verdictOn(receipt, 3));
        refused(attacker, address(disputes), report, Quorum.Quorum__TooFewSigners.selector);
        bytes4 bad = Quorum.Quorum__BadSignature.selector;
        bytes32[3] memory others = [
            disputes.hashVerdict(WRONG, stranger, digest, 1),
            disputes.hashVerdict(WRONG, worker, keccak256("another receipt"), 1),
            disputes.hashVerdict(IDisputeManager.Misconduct.DOWNTIME, worker, digest, 1)
        ];
        for (uint256 i = 0; i < others.length; ++i) {
            report = reportCall(receipt, signature, endorse(1, 7, others[i]));
            refused(attacker, address(disputes), report, bad);
        }
        // The node's own receipt, endorsed by the validators as they might endorse it: no verdict.
        report = reportCall(receipt, signature, endorse(1, 7, digest));
        refused(attacker, address(disputes), report, bad);
        assertUnscathed();
    }

    function test_staleEpoch() public {
        IDisputeManager.NodeReceipt memory receipt = receiptOf(worker);
        bytes memory report = reportCall(receipt, signatureOf(NODE_KEY, digestOf(receipt)), verdictOn(receipt, 7));
        nextEpoch();
        vm.warp(uint256(registry.validUntil(1)) + 1);
        refused(attacker, address(disputes), report, Quorum.Quorum__EpochStale.selector);
        assertUnscathed();
    }

    /// @dev One offence a request: neither the same receipt again, nor another one of that request, nor the signature's
    /// mirror, nor another quorum.
    function test_replay() public {
        IDisputeManager.NodeReceipt memory receipt = receiptOf(worker);
        bytes memory signature = signatureOf(NODE_KEY, digestOf(receipt));
        accepted(stranger, address(disputes), reportCall(receipt, signature, verdictOn(receipt, 7)));
        refused(attacker, address(disputes), reportCall(receipt, signature, verdictOn(receipt, 7)), USED);
        nextEpoch();
        refused(attacker, address(disputes), reportCall(receipt, signature, verdictOn(receipt, 28)), USED);
        bytes memory mirrored = reportCall(receipt, Signatures.mirrored(signature), verdictOn(receipt, 7));
        refused(attacker, address(disputes), mirrored, ECDSA.ECDSAInvalidSignatureS.selector);
        receipt.finishedMs += 1;
        signature = signatureOf(NODE_KEY, digestOf(receipt));
        refused(attacker, address(disputes), reportCall(receipt, signature, verdictOn(receipt, 7)), USED);
        vm.assertEq(registry.stakeOf(worker), BOND * 7 / 10);
        receipt.requestId = "another request";
        signature = signatureOf(NODE_KEY, digestOf(receipt));
        accepted(stranger, address(disputes), reportCall(receipt, signature, verdictOn(receipt, 7)));
        vm.assertEq(registry.stakeOf(worker), BOND * 49 / 100);
    }

    /// @dev A validator that computed does not judge itself.
    function test_judgeInItsOwnCase() public {
        IDisputeManager.NodeReceipt memory receipt = receiptOf(validatorAt(2));
        bytes memory signature = signatureOf(validatorKey(2), digestOf(receipt));
        bytes memory report = reportCall(receipt, signature, verdictOn(receipt, 7));
        refused(attacker, address(disputes), report, Quorum.Quorum__SignerExcluded.selector);
        vm.assertEq(registry.stakeOf(validatorAt(2)), STAKE);
    }

    /// @dev Nothing to take from who never bonded, and nothing from who left.
    function test_unbonded() public {
        IDisputeManager.NodeReceipt memory receipt = receiptOf(attacker);
        bytes memory report = reportCall(receipt, signatureOf(ATTACKER_KEY, digestOf(receipt)), verdictOn(receipt, 7));
        bytes4 wrong = IValidatorRegistry.ValidatorRegistry__WrongState.selector;
        refused(stranger, address(disputes), report, wrong);
        vm.prank(worker);
        registry.requestExit();
        vm.warp(START + registry.unbondingPeriod());
        vm.prank(worker);
        registry.finalizeExit();
        registry.advanceEpoch();
        receipt = receiptOf(worker);
        report = reportCall(receipt, signatureOf(NODE_KEY, digestOf(receipt)), verdictOn(receipt, 7));
        accepted(stranger, address(disputes), report);
        vm.assertEq(token.balanceOf(treasurer), 0);
        vm.assertEq(token.balanceOf(worker), BOND);
    }

    /// @dev A slashed node gets out of jail only by adding stake, and never into the validators' seats.
    function test_jailbreak() public {
        IDisputeManager.NodeReceipt memory receipt = receiptOf(worker);
        bytes memory signature = signatureOf(NODE_KEY, digestOf(receipt));
        accepted(stranger, address(disputes), reportCall(receipt, signature, verdictOn(receipt, 7)));
        bytes4 wrong = IValidatorRegistry.ValidatorRegistry__WrongState.selector;
        refused(worker, address(registry), abi.encodeCall(registry.bond, (BOND)), wrong);
        refused(worker, address(registry), abi.encodeCall(registry.registerValidator, (STAKE)), wrong);
        refused(worker, address(registry), abi.encodeCall(registry.finalizeExit, ()), wrong);
        fund(worker, 2 * STAKE);
        accepted(worker, address(registry), abi.encodeCall(registry.addStake, (BOND * 3 / 10 - 1)));
        (IValidatorRegistry.State state,,,,) = registry.validators(worker);
        vm.assertEq(uint256(state), uint256(IValidatorRegistry.State.JAILED));
        accepted(worker, address(registry), abi.encodeCall(registry.addStake, (STAKE)));
        (state,,,,) = registry.validators(worker);
        vm.assertEq(uint256(state), uint256(IValidatorRegistry.State.BONDED));
        nextEpoch();
        vm.assertEq(registry.members(2).length, VALIDATORS);
    }

    function assertUnscathed() private view {
        vm.assertEq(registry.stakeOf(worker), BOND, "slashed without cause");
        vm.assertEq(token.balanceOf(treasurer), 0);
    }
}
