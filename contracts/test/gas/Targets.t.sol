// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IInferencePayment} from "../../src/interfaces/IInferencePayment.sol";
import {Network} from "../Network.sol";

/// @title What the network's transactions cost, beside what they may cost
/// @notice Each call is a transaction of its own (`isolate` in foundry.toml): with the intrinsic 21,000, calldata, cold
/// storage and the refund. Everything was used before (no balance, nonce or ring place is written for the first
/// time); the last test tells what the first time adds.
contract TargetsTest is Network {
    /// @dev Forge prints this event with -vv.
    event log(string line);

    uint256 private constant FEE = 0.001 ether;
    uint64 private batches = 0;

    function setUp() public override {
        super.setUp();
        vm.prank(client);
        payment.depositAccount(100 ether);
        for (uint256 i = 0; i < 20; ++i) {
            token.transfer(nodeAt(i), 1);
        }
        token.transfer(gateway, 1);
        token.transfer(node, 1);
    }

    function test_oneMoreChannel() public {
        warm(20);
        uint256 few = settleGas(10, 5, 100);
        uint256 many = settleGas(20, 5, 100);
        report("one more active channel in a batch", (many - few) / 10, 11_000);
    }

    function test_oneMorePayee() public {
        warm(10);
        uint256 few = settleGas(10, 5, 100);
        uint256 many = settleGas(10, 20, 100);
        report("one more payee", (many - few) / 15, 8_500);
    }

    function test_fixedCost() public {
        warm(20);
        uint256 few = settleGas(10, 5, 100);
        uint256 channel = (settleGas(20, 5, 100) - few) / 10;
        uint256 payee = (settleGas(10, 20, 100) - few) / 15;
        report("fixed cost of a batch with 3 of 5", few - 10 * channel - 5 * payee, 95_000);
    }

    function test_thousandRequests() public {
        warm(10);
        report("1,000 requests, 10 channels, 5 nodes: per request", settleGas(10, 5, 1_000) / 1_000, 250);
    }

    function test_tenThousandRequests() public {
        warm(20);
        report("10,000 requests, 20 channels, 20 nodes: per request", settleGas(20, 20, 10_000) / 10_000, 50);
    }

    /// @dev As many channels as fit into a transaction (EIP-7825).
    function test_mostChannels() public {
        firstBatchGas(1_400);
        report("1,400 channels in one transaction", settleGas(1_400, 5, 14_000), 16_777_216);
    }

    function test_escrow() public {
        for (uint256 i = 0; i < payment.MAX_REQUESTS(); ++i) {
            escrowGas();
        }
        (uint256 first, uint256 second) = escrowGas();
        print("escrow: initiate", first, "");
        print("escrow: complete", second, "");
        report("escrow: initiate + complete", first + second, 130_000);
    }

    function test_refund() public {
        IInferencePayment.Request memory request = requestOf(1 ether);
        initiate(request);
        vm.warp(uint256(request.expiry) + 1);
        vm.prank(stranger);
        payment.handleExpiredRequest(request);
        report("refund", lastGas(), 33_000);
    }

    function test_theFirstTime() public {
        (uint256 first, uint256 second) = escrowGas();
        print("a client's first 16 escrows: initiate + complete", first + second, "");
        print("the first batch of a gateway, 10 channels, 5 nodes", firstBatchGas(10), "");
    }

    // --- inside ---

    function nodeAt(uint256 i) private pure returns (address) {
        return _named(string(abi.encode("node", i)));
    }

    /// @dev Opens channels and settles them once.
    function firstBatchGas(uint256 channels) private returns (uint256) {
        vm.startPrank(client);
        for (uint256 i = 0; i < channels; ++i) {
            payment.deposit(client, vm.addr(SESSION_KEY + i), gateway, 100 ether);
        }
        vm.stopPrank();
        return settleGas(channels, 5, 100 * channels);
    }

    /// @dev Settles until every place of the ring was written once.
    function warm(uint256 channels) private {
        firstBatchGas(channels);
        for (uint256 i = 1; i < 192; ++i) {
            settleGas(1, 1, 10);
        }
    }

    /// @dev Settles a batch in which `requests` of one fee each are spread over channels and nodes; returns its gas.
    function settleGas(uint256 channels, uint256 nodes, uint256 requests) private returns (uint256) {
        IInferencePayment.Claim[] memory claims = new IInferencePayment.Claim[](channels);
        for (uint256 i = 0; i < channels; ++i) {
            uint256 key = SESSION_KEY + i;
            (, uint96 spent,) = payment.channels(payment.channelId(client, vm.addr(key), gateway));
            uint96 total = spent + uint96((requests / channels) * FEE);
            claims[i] = claimOf(client, key, gateway, total + uint96(FEE), total);
        }
        IInferencePayment.Credit[] memory credits = new IInferencePayment.Credit[](nodes);
        for (uint256 i = 0; i < nodes; ++i) {
            credits[i] = IInferencePayment.Credit(nodeAt(i), uint96((requests * FEE * 80) / 100 / nodes));
        }
        IInferencePayment.Batch memory batch = batchOf(gateway, ++batches, uint32(requests), claims, credits);
        bytes memory signatures = signaturesOf(7, payment.hashBatch(batch));
        vm.prank(stranger);
        payment.settleBatch(batch, claims, credits, 7, signatures);
        return lastGas();
    }

    function escrowGas() private returns (uint256 first, uint256 second) {
        IInferencePayment.Request memory request = requestOf(1 ether);
        bytes memory signatures = signaturesOf(7, preprocessOf(request));
        vm.prank(client);
        payment.initiateInferenceRequest(request, 7, signatures);
        first = lastGas();
        bytes32 id = payment.requestId(request.client, request.nonce);
        bytes32 output = keccak256("output");
        signatures = signaturesOf(7, payment.hashCompletion(id, output, request.amount));
        vm.prank(stranger);
        payment.completeInferenceRequest(request, output, request.amount, 7, signatures);
        second = lastGas();
    }

    function lastGas() private view returns (uint256) {
        return vm.lastCallGas().gasTotalUsed;
    }

    function report(string memory metric, uint256 gas, uint256 target) private {
        print(metric, gas, string.concat(" (target ", vm.toString(target), ")"));
        vm.assertLe(gas, target, metric);
    }

    /// @dev Printed with -vv, and compared with snapshots/targets.json, which `npm run snapshot` writes.
    function print(string memory metric, uint256 gas, string memory target) private {
        vm.snapshotValue("targets", metric, gas);
        emit log(string.concat(metric, ": ", vm.toString(gas), target));
    }
}
