// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";
import {DisputeManager} from "../../src/DisputeManager.sol";
import {IDisputeManager} from "../../src/interfaces/IDisputeManager.sol";
import {IInferencePayment} from "../../src/interfaces/IInferencePayment.sol";
import {InferencePayment} from "../../src/InferencePayment.sol";
import {Quorum} from "../../src/libraries/Quorum.sol";
import {Battlefield} from "./Battlefield.sol";

/// @title Attacks with what was signed for something else: another time, purpose, chain or deployment
contract ReplaysAttack is Battlefield {
    InferencePayment private twin;

    /// @dev Another deployment with the same registry, in which the victim has as much.
    function setUp() public override {
        super.setUp();
        twin = new InferencePayment(token, registry, timelock, guardian, paymentConfig());
        vm.startPrank(client);
        token.approve(address(twin), type(uint256).max);
        twin.deposit(client, client, gateway, 1_000 ether);
        twin.depositAccount(1_000 ether);
        vm.stopPrank();
    }

    // --- batches ---

    function test_batchTwice() public {
        bytes memory data = hundredCall(5);
        accepted(gateway, address(payment), data);
        bytes4 used = IInferencePayment.InferencePayment__BatchNonceUsed.selector;
        refused(gateway, address(payment), data, used);
        // Neither with the same nonce and other contents, nor with a lower one that was skipped.
        refused(gateway, address(payment), hundredCall(5), used);
        refused(gateway, address(payment), hundredCall(4), used);
        refused(gateway, address(payment), hundredCall(0), used);
        accepted(gateway, address(payment), hundredCall(6));
        vm.assertEq(leftIn(client, client, gateway), 800 ether);
    }

    function testFuzz_noncesOnlyRise(uint64[6] memory nonces) public {
        uint64 last = 0;
        for (uint256 i = 0; i < nonces.length; ++i) {
            bytes memory data = hundredCall(nonces[i]);
            if (nonces[i] <= last) {
                refused(gateway, address(payment), data, IInferencePayment.InferencePayment__BatchNonceUsed.selector);
            } else {
                accepted(gateway, address(payment), data);
                last = nonces[i];
            }
            vm.assertEq(payment.batchNonce(gateway), last);
        }
    }

    /// @dev A batch that was signed again under the next nonce can't come first and then second, too.
    function test_bothOfTwoBatches() public {
        bytes memory first = hundredCall(1);
        bytes memory second = hundredCall(2);
        accepted(attacker, address(payment), second);
        refused(attacker, address(payment), first, IInferencePayment.InferencePayment__BatchNonceUsed.selector);
    }

    function test_batchElsewhere() public {
        bytes memory data = hundredCall(1);
        refused(attacker, address(twin), data, Quorum.Quorum__BadSignature.selector);
        // And with a quorum that signs for the other one, the vouchers are still not for it.
        (
            IInferencePayment.Batch memory batch,
            IInferencePayment.Claim[] memory claims,
            IInferencePayment.Credit[] memory credits
        ) = hundred(1);
        bytes memory signatures = signaturesOf(7, twin.hashBatch(batch));
        bytes memory moved = abi.encodeCall(twin.settleBatch, (batch, claims, credits, 7, signatures));
        refused(attacker, address(twin), moved, IInferencePayment.InferencePayment__BadVoucher.selector);
        vm.chainId(CHAIN + 1);
        refused(attacker, address(payment), data, Quorum.Quorum__BadSignature.selector);
        signatures = signaturesOf(7, payment.hashBatch(batch));
        data = abi.encodeCall(payment.settleBatch, (batch, claims, credits, 7, signatures));
        refused(attacker, address(payment), data, IInferencePayment.InferencePayment__BadVoucher.selector);
        vm.chainId(CHAIN);
        accepted(attacker, address(payment), hundredCall(1));
    }

    // --- deposits and verdicts ---

    /// @dev Signed for one deployment, an authorization does nothing for another, nor on another chain.
    function test_authorizationElsewhere() public {
        bytes memory signature = authorization(CLIENT_KEY, payment.channelId(client, client, gateway), 5 ether, 0);
        bytes memory data = authorizedCall(client, client, gateway, 5 ether, 0, signature);
        refused(attacker, address(twin), data, ERC3009.ERC3009InvalidSignature.selector);
        vm.chainId(CHAIN + 1);
        refused(attacker, address(payment), data, ERC3009.ERC3009InvalidSignature.selector);
        vm.chainId(CHAIN);
        accepted(attacker, address(payment), data);
    }

    /// @dev A verdict is for one dispute manager on one chain.
    function test_verdictElsewhere() public {
        DisputeManager other = new DisputeManager(twin);
        registry.grantRole(registry.DISPUTES_ROLE(), address(other));
        nextEpoch();
        bytes32 digest =
            disputes.hashVerdict(IDisputeManager.Misconduct.DOWNTIME, validatorAt(4), bytes32(uint256(1)), 2);
        bytes memory report = abi.encodeCall(disputes.reportDowntime, (validatorAt(4), 1, endorse(2, 7, digest)));
        refused(attacker, address(other), report, Quorum.Quorum__BadSignature.selector);
        vm.chainId(CHAIN + 1);
        refused(attacker, address(disputes), report, Quorum.Quorum__BadSignature.selector);
        vm.chainId(CHAIN);
        accepted(attacker, address(disputes), report);
        vm.assertEq(registry.stakeOf(validatorAt(4)), (STAKE * 9) / 10);
    }

    // --- requests ---

    function test_requestTwice() public {
        IInferencePayment.Request memory request = requestOf(10 ether);
        bytes memory begin = initiateCall(request);
        bytes memory complete_ = completeCall(request, 10 ether);
        bytes memory fail_ = failCall(request);
        bytes memory expire = abi.encodeCall(payment.handleExpiredRequest, (request));
        bytes4 nothing = IInferencePayment.InferencePayment__NotInEscrow.selector;
        refused(attacker, address(payment), complete_, nothing); // before it began
        refused(attacker, address(payment), fail_, nothing);
        accepted(client, address(payment), begin);
        refused(client, address(payment), begin, IInferencePayment.InferencePayment__WrongRequestNonce.selector);
        uint256 snapshot = vm.snapshotState();
        bytes[3] memory ends = [complete_, fail_, expire];
        for (uint256 first = 0; first < 3; ++first) {
            if (first == 2) vm.warp(uint256(request.expiry) + 1);
            accepted(attacker, address(payment), ends[first]);
            for (uint256 second = 0; second < 3; ++second) {
                refused(attacker, address(payment), ends[second], nothing);
            }
            vm.assertEq(freeOf(client), first == 0 ? 990 ether : 1_000 ether);
            vm.revertToState(snapshot);
            snapshot = vm.snapshotState();
        }
    }

    /// @dev The sixteenth request after one takes its place in the ring: what was signed for the one ends not the
    /// other.
    function test_requestsThatShareAPlace() public {
        IInferencePayment.Request memory old = requestOf(1 ether);
        bytes memory complete_ = completeCall(old, 1 ether);
        bytes memory fail_ = failCall(old);
        initiate(old);
        accepted(stranger, address(payment), fail_);
        for (uint256 i = 1; i < 16; ++i) {
            initiate(requestOf(1 ether));
        }
        IInferencePayment.Request memory young = requestOf(1 ether);
        initiate(young);
        bytes4 nothing = IInferencePayment.InferencePayment__NotInEscrow.selector;
        refused(attacker, address(payment), complete_, nothing);
        refused(attacker, address(payment), fail_, nothing);
        // And none is written over that has not ended.
        bytes memory data = initiateCall(requestOf(1 ether));
        refused(client, address(payment), data, IInferencePayment.InferencePayment__TooManyRequests.selector);
        vm.assertEq(freeOf(client), 984 ether);
        accepted(stranger, address(payment), completeCall(young, 1 ether));
    }

    /// @dev An id is the contract's to give: of the client, its counter, the chain, the contract. Nobody can take one
    /// of another client's, and no two requests have the same.
    function test_idCollisions() public {
        fund(attacker, 10 ether);
        vm.prank(attacker);
        payment.depositAccount(10 ether);
        IInferencePayment.Request memory request = requestOf(10 ether);
        bytes memory stolen = initiateCall(request);
        refused(attacker, address(payment), stolen, IInferencePayment.InferencePayment__NotClient.selector);
        IInferencePayment.Request memory own = requestOf(10 ether);
        own.client = attacker;
        accepted(attacker, address(payment), initiateCall(own));
        accepted(client, address(payment), stolen);
        bytes32 id = payment.requestId(client, 0);
        vm.assertTrue(id != payment.requestId(attacker, 0), "of another client");
        vm.assertTrue(id != payment.requestId(client, 1), "of another count");
        vm.assertTrue(id != twin.requestId(client, 0), "of another deployment");
        vm.assertEq(id, keccak256(abi.encode(payment, CHAIN, client, uint64(0))));
        vm.chainId(CHAIN + 1);
        vm.assertTrue(id != payment.requestId(client, 0), "of another chain");
        vm.chainId(CHAIN);
        // The same id with other terms is no request.
        request.node = attacker;
        bytes4 nothing = IInferencePayment.InferencePayment__NotInEscrow.selector;
        refused(attacker, address(payment), completeCall(request, 10 ether), nothing);
        request.node = node;
        request.amount += 1;
        refused(attacker, address(payment), completeCall(request, 10 ether), nothing);
    }

    /// @dev A client can't skip or repeat its counter to reach an id of its choice.
    function testFuzz_requestNonces(uint64 nonce) public {
        vm.assume(nonce != 0);
        IInferencePayment.Request memory request = requestOf(1 ether);
        request.nonce = nonce;
        bytes4 reason = IInferencePayment.InferencePayment__WrongRequestNonce.selector;
        refused(client, address(payment), initiateCall(request), reason);
    }

    function test_requestElsewhere() public {
        IInferencePayment.Request memory request = requestOf(10 ether);
        bytes memory begin = initiateCall(request);
        bytes memory complete_ = completeCall(request, 10 ether);
        bytes memory fail_ = failCall(request);
        bytes4 bad = Quorum.Quorum__BadSignature.selector;
        refused(client, address(twin), begin, bad);
        vm.chainId(CHAIN + 1);
        refused(client, address(payment), begin, bad);
        vm.chainId(CHAIN);
        accepted(client, address(payment), begin);
        // The same request in the other one, by its own quorum: what is signed for the first does not end it.
        bytes32 commitment = keccak256(abi.encode(request));
        bytes memory signatures = signaturesOf(7, twin.hashPreprocess(twin.requestId(client, 0), commitment));
        vm.prank(client);
        twin.initiateInferenceRequest(request, 7, signatures);
        refused(attacker, address(twin), complete_, bad);
        refused(attacker, address(twin), fail_, bad);
        vm.chainId(CHAIN + 1);
        refused(attacker, address(payment), complete_, bad);
        refused(attacker, address(payment), fail_, bad);
        vm.chainId(CHAIN);
        accepted(attacker, address(payment), complete_);
        vm.assertEq(token.balanceOf(address(twin)), 2_000 ether, "the other deployment");
    }

    // --- purposes ---

    /// @dev A signature for one purpose is none for another: every digest has a type of its own.
    function test_otherPurposes() public {
        IInferencePayment.Request memory request = requestOf(10 ether);
        bytes32 id = payment.requestId(client, 0);
        bytes32 commitment = keccak256(abi.encode(request));
        bytes32 result = keccak256(abi.encode(bytes32("output"), uint96(10 ether)));
        (IInferencePayment.Batch memory batch,,) = hundred(1);
        bytes32[6] memory digests = [
            payment.hashVoucher(id, 10 ether),
            payment.hashPreprocess(id, commitment),
            payment.hashPreprocess(id, result),
            payment.hashCompletion(id, "output", 10 ether),
            payment.hashFailure(id),
            payment.hashBatch(batch)
        ];
        initiate(request);
        bytes4 bad = Quorum.Quorum__BadSignature.selector;
        for (uint256 i = 0; i < digests.length; ++i) {
            for (uint256 j = 0; j < i; ++j) {
                vm.assertNotEq(digests[i], digests[j]);
            }
            bytes memory signatures = signaturesOf(7, digests[i]);
            if (i != 3) {
                bytes memory data =
                    abi.encodeCall(payment.completeInferenceRequest, (request, "output", 10 ether, 7, signatures));
                refused(attacker, address(payment), data, bad);
            }
            if (i != 4) {
                refused(
                    attacker, address(payment), abi.encodeCall(payment.markRequestFailed, (request, 7, signatures)), bad
                );
            }
        }
    }

    /// @dev A completion is of one output and one fee.
    function testFuzz_completionFixesResultAndFee(bytes32 output, uint96 fee) public {
        IInferencePayment.Request memory request = requestOf(10 ether);
        initiate(request);
        fee = fee % (10 ether + 1);
        if (output == "output" && fee == 5 ether) return;
        bytes memory signatures =
            signaturesOf(7, payment.hashCompletion(payment.requestId(client, 0), "output", 5 ether));
        bytes memory data = abi.encodeCall(payment.completeInferenceRequest, (request, output, fee, 7, signatures));
        refused(attacker, address(payment), data, Quorum.Quorum__BadSignature.selector);
    }
}
