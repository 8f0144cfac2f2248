// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {IDisputeManager} from "../../src/interfaces/IDisputeManager.sol";
import {IValidatorRegistry} from "../../src/interfaces/IValidatorRegistry.sol";
import {NodeNetwork} from "../NodeNetwork.sol";

/// @title What a compute node's wrong result costs it
contract InvalidResultsTest is NodeNetwork {
    function test_reportInvalidResult() public {
        IDisputeManager.NodeReceipt memory receipt = receiptOf(worker);
        bytes memory signature = signatureOf(NODE_KEY, digestOf(receipt));
        IDisputeManager.Endorsement memory verdict = verdictOn(receipt, 7);
        vm.prank(stranger);
        vm.expectEmit(address(disputes));
        emit IDisputeManager.MisconductProven(WRONG, worker, receipt.requestId, BOND * 3 / 10);
        disputes.reportInvalidResult(receipt, signature, verdict);
        (IValidatorRegistry.State state, uint96 stake,, int64 reputation,) = registry.validators(worker);
        vm.assertEq(uint256(state), uint256(IValidatorRegistry.State.JAILED));
        vm.assertEq(stake, BOND * 7 / 10);
        vm.assertEq(reputation, -20);
        vm.assertEq(token.balanceOf(treasurer), BOND * 3 / 10);
        vm.assertTrue(registry.evidenceUsed(keccak256(abi.encode(WRONG, worker, receipt.requestId))));
    }

    /// @dev Whatever the node signed, and whoever of the validators judged.
    function testFuzz_reportInvalidResult(IDisputeManager.NodeReceipt memory receipt, uint8 judges) public {
        receipt.node = worker;
        uint256 bitmap = uint256(judges & 0x1f) | 7;
        disputes.reportInvalidResult(receipt, signatureOf(NODE_KEY, digestOf(receipt)), verdictOn(receipt, bitmap));
        vm.assertEq(registry.stakeOf(worker), BOND * 7 / 10);
    }

    /// @dev A validator that also computes answers for it with its stake.
    function test_reportInvalidResultOfAValidator() public {
        IDisputeManager.NodeReceipt memory receipt = receiptOf(validatorAt(4));
        disputes.reportInvalidResult(receipt, signatureOf(validatorKey(4), digestOf(receipt)), verdictOn(receipt, 7));
        vm.assertEq(registry.stakeOf(validatorAt(4)), STAKE * 7 / 10);
    }

    /// @dev Also of a node that is leaving, until the last day.
    function test_reportInvalidResultOfALeaver() public {
        vm.prank(worker);
        registry.requestExit();
        (,, uint64 exitAt,,) = registry.validators(worker);
        vm.warp(exitAt - 1);
        registry.advanceEpoch();
        IDisputeManager.NodeReceipt memory receipt = receiptOf(worker);
        disputes.reportInvalidResult(receipt, signatureOf(NODE_KEY, digestOf(receipt)), verdictOn(receipt, 7));
        vm.assertEq(registry.stakeOf(worker), BOND * 7 / 10);
    }

    function test_revert_reportInvalidResult() public {
        IDisputeManager.NodeReceipt memory receipt = receiptOf(worker);
        IDisputeManager.Endorsement memory verdict = verdictOn(receipt, 7);
        vm.expectRevert(abi.encodeWithSelector(ECDSA.ECDSAInvalidSignatureLength.selector, 0));
        disputes.reportInvalidResult(receipt, "", verdict);
        vm.expectRevert(ECDSA.ECDSAInvalidSignature.selector);
        disputes.reportInvalidResult(receipt, new bytes(65), verdict);
    }

    function testFuzz_hashNodeReceipt(IDisputeManager.NodeReceipt memory receipt) public view {
        vm.assertEq(disputes.hashNodeReceipt(receipt), digestOf(receipt));
    }
}
