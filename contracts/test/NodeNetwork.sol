// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IDisputeManager} from "../src/interfaces/IDisputeManager.sol";
import {Battlefield} from "./attacks/Battlefield.sol";

/// @title A network with a compute node that has bonded, and what it and its judges sign
abstract contract NodeNetwork is Battlefield {
    uint256 internal constant NODE_KEY = 0x90DE;
    address internal immutable worker = vm.addr(NODE_KEY);
    IDisputeManager.Misconduct internal constant WRONG = IDisputeManager.Misconduct.INVALID_RESULT;

    function setUp() public virtual override {
        super.setUp();
        fund(worker, BOND);
        vm.prank(worker);
        registry.bond(BOND);
    }

    function receiptOf(address computed) internal pure returns (IDisputeManager.NodeReceipt memory) {
        return IDisputeManager.NodeReceipt({
            requestId: "request",
            requestHash: "content",
            model: "model",
            outputHash: "output",
            chunks: 3,
            units: 40,
            fee: 5 ether,
            node: computed,
            startedMs: 1_800_000_000_123,
            finishedMs: 1_800_000_001_456
        });
    }

    /// @dev The digest as EIP-712 says, beside the contract's.
    function digestOf(IDisputeManager.NodeReceipt memory receipt) internal view returns (bytes32) {
        bytes32 structHash = keccak256(
            abi.encode(
                keccak256(
                    "Receipt(bytes32 requestId,bytes32 requestHash,bytes32 model,bytes32 outputHash,uint64 chunks,"
                    "uint64 units,uint96 fee,address node,uint64 startedMs,uint64 finishedMs)"
                ),
                receipt.requestId,
                receipt.requestHash,
                receipt.model,
                receipt.outputHash,
                receipt.chunks,
                receipt.units,
                receipt.fee,
                receipt.node,
                receipt.startedMs,
                receipt.finishedMs
            )
        );
        return keccak256(abi.encodePacked(hex"1901", payment.DOMAIN_SEPARATOR(), structHash));
    }

    /// @dev The verdict of the validators in a bitmap on a receipt.
    function verdictOn(IDisputeManager.NodeReceipt memory receipt, uint256 bitmap)
        internal
        view
        returns (IDisputeManager.Endorsement memory)
    {
        uint32 epoch = registry.currentEpoch();
        return endorse(epoch, bitmap, disputes.hashVerdict(WRONG, receipt.node, digestOf(receipt), epoch));
    }

    function reportCall(
        IDisputeManager.NodeReceipt memory receipt,
        bytes memory signature,
        IDisputeManager.Endorsement memory verdict
    ) internal view returns (bytes memory) {
        return abi.encodeCall(disputes.reportInvalidResult, (receipt, signature, verdict));
    }
}
