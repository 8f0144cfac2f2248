// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IInferencePayment} from "../../src/interfaces/IInferencePayment.sol";
import {INCNToken} from "../../src/interfaces/INCNToken.sol";
import {Quorum} from "../../src/libraries/Quorum.sol";
import {Network} from "../Network.sol";

contract BatchesTest is Network {
    function test_settleBatch() public {
        open(SESSION_KEY, 10_000);
        open(SESSION_KEY + 1, 10_000);
        IInferencePayment.Claim[] memory claims = new IInferencePayment.Claim[](2);
        claims[0] = claimOf(client, SESSION_KEY, gateway, 700, 601);
        claims[1] = claimOf(client, SESSION_KEY + 1, gateway, 10_500, 400); // a voucher may exceed the deposit
        IInferencePayment.Credit[] memory credits = new IInferencePayment.Credit[](2);
        credits[0] = IInferencePayment.Credit(node, 500);
        credits[1] = IInferencePayment.Credit(stranger, 300);
        IInferencePayment.Batch memory batch = batchOf(gateway, 7, 3, claims, credits);
        bytes memory signatures = signaturesOf(7, payment.hashBatch(batch));
        vm.expectEmit(address(payment));
        emit IInferencePayment.BatchSettled(gateway, 7, 1_001, batch.receiptsRoot, batch.daHash, 3);
        payment.settleBatch(batch, claims, credits, 7, signatures);
        vm.assertEq(token.balanceOf(node), 500);
        vm.assertEq(token.balanceOf(stranger), 300);
        vm.assertEq(token.balanceOf(gateway), 100);
        expectGlobals(51, 50); // dust to the treasury
        expectSpent(SESSION_KEY, 601);
        expectSpent(SESSION_KEY + 1, 400);
        vm.assertEq(payment.batchNonce(gateway), 7);
        vm.assertEq(payment.batchCommitment(gateway, 7), payment.hashBatch(batch));
    }

    function testFuzz_settleBatch(uint8 channels, uint8 nodes, uint64 seed) public {
        uint256 count = 1 + channels % 8;
        IInferencePayment.Claim[] memory claims = new IInferencePayment.Claim[](count);
        uint256 total = 0;
        for (uint256 i = 0; i < count; ++i) {
            uint96 amount = uint96(1 + uint256(keccak256(abi.encode(seed, i))) % 1_000 ether);
            open(SESSION_KEY + i, amount + 1);
            claims[i] = claimOf(client, SESSION_KEY + i, gateway, amount, amount);
            total += amount;
        }
        IInferencePayment.Credit[] memory credits = new IInferencePayment.Credit[](nodes % 5);
        uint256 compute = 0;
        for (uint256 i = 0; i < credits.length; ++i) {
            credits[i] =
                IInferencePayment.Credit(address(uint160(0x10000 + i)), uint96(total * 80 / 100 / credits.length));
            compute += credits[i].amount;
        }
        IInferencePayment.Batch memory batch =
            batchOf(gateway, 1, credits.length == 0 ? type(uint32).max : 10, claims, credits);
        if (total * 80 / 100 - compute > batch.count) return; // no nodes: only what so many receipts may round away
        settle(batch, claims, credits);
        (uint96 treasury, uint96 pool,) = payment.globals();
        vm.assertEq(pool, total / 20);
        vm.assertEq(token.balanceOf(gateway), total / 10);
        vm.assertEq(treasury, total - compute - total / 10 - total / 20);
        vm.assertEq(token.balanceOf(address(payment)), count + treasury + pool);
    }

    /// @dev Any claim against a plain reading of the rules.
    function testFuzz_settleBatchClaim(uint96 deposited, uint96 spent, uint96 cumulative, uint96 total) public {
        deposited = uint96(2 + deposited % 1_000 ether);
        spent = uint96(1 + spent % (deposited - 1));
        cumulative = cumulative % (2_000 ether);
        total = total % (2_000 ether);
        open(SESSION_KEY, deposited);
        settleOne(1, spent, spent);
        bool fits = spent < total && total <= cumulative && total <= deposited;
        uint96 most = cumulative < deposited ? cumulative : deposited;
        IInferencePayment.Claim[] memory claims = new IInferencePayment.Claim[](1);
        claims[0] = claimOf(client, SESSION_KEY, gateway, cumulative, total);
        IInferencePayment.Credit[] memory credits = new IInferencePayment.Credit[](1);
        credits[0] = IInferencePayment.Credit(node, fits ? uint96(uint256(total - spent) * 80 / 100) : 0);
        IInferencePayment.Batch memory batch = batchOf(gateway, 2, 1, claims, credits);
        bytes memory signatures = signaturesOf(7, payment.hashBatch(batch));
        if (!fits) {
            vm.expectRevert(
                abi.encodeWithSelector(
                    IInferencePayment.InferencePayment__BadClaim.selector, 0, channel(SESSION_KEY), total, spent, most
                )
            );
        }
        payment.settleBatch(batch, claims, credits, 7, signatures);
        expectSpent(SESSION_KEY, fits ? total : spent);
    }

    function test_settleBatchOfAChannelTwice() public {
        open(SESSION_KEY, 10_000);
        IInferencePayment.Claim[] memory claims = new IInferencePayment.Claim[](2);
        claims[0] = claimOf(client, SESSION_KEY, gateway, 500, 500);
        claims[1] = claimOf(client, SESSION_KEY, gateway, 500, 500);
        IInferencePayment.Credit[] memory credits = new IInferencePayment.Credit[](0);
        expectBatchRevert(
            batchOf(gateway, 1, 400, claims, credits),
            claims,
            credits,
            abi.encodeWithSelector(
                IInferencePayment.InferencePayment__BadClaim.selector, 1, channel(SESSION_KEY), 500, 500, 500
            )
        );
    }

    function test_settleBatchKeepsTheExit() public {
        open(SESSION_KEY, 10_000);
        vm.prank(client);
        payment.requestWithdrawal(session, gateway);
        settleOne(1, 4_000, 4_000);
        (uint96 deposited, uint96 spent, uint64 unlockAt) = payment.channels(channel(SESSION_KEY));
        vm.assertEq(deposited, 10_000);
        vm.assertEq(spent, 4_000);
        vm.assertEq(unlockAt, START + 2 days);
    }

    function test_settleBatchCreditsWhereTheTokenRefuses() public {
        open(SESSION_KEY, 10_000);
        IInferencePayment.Claim[] memory claims = new IInferencePayment.Claim[](1);
        claims[0] = claimOf(client, SESSION_KEY, gateway, 1_000, 1_000);
        IInferencePayment.Credit[] memory credits = new IInferencePayment.Credit[](2);
        credits[0] = IInferencePayment.Credit(node, 500);
        credits[1] = IInferencePayment.Credit(stranger, 300);
        vm.mockCallRevert(address(token), abi.encodeWithSelector(INCNToken.transferBatch.selector), "blocked");
        vm.mockCallRevert(address(token), abi.encodeCall(IERC20.transfer, (node, 500)), "blocked");
        vm.mockCallRevert(address(token), abi.encodeCall(IERC20.transfer, (gateway, 100)), "blocked");
        IInferencePayment.Batch memory batch = batchOf(gateway, 1, 1, claims, credits);
        bytes memory signatures = signaturesOf(7, payment.hashBatch(batch));
        vm.expectEmit(address(payment));
        emit IInferencePayment.AccountCredited(node, 500);
        payment.settleBatch(batch, claims, credits, 7, signatures);
        vm.clearMockedCalls();
        expectFree(node, 500);
        expectFree(gateway, 100);
        vm.assertEq(token.balanceOf(stranger), 300);
        vm.prank(node);
        payment.withdraw(500);
        vm.assertEq(token.balanceOf(node), 500);
    }

    function test_revert_settleBatchTerms() public {
        open(SESSION_KEY, 10_000);
        settleOne(5, 100, 100);
        IInferencePayment.Claim[] memory claims = new IInferencePayment.Claim[](1);
        claims[0] = claimOf(client, SESSION_KEY, gateway, 1_000, 1_000);
        IInferencePayment.Credit[] memory credits = new IInferencePayment.Credit[](1);
        credits[0] = IInferencePayment.Credit(node, 720);
        IInferencePayment.Batch memory batch = batchOf(gateway, 5, 1, claims, credits);
        expectBatchRevert(
            batch,
            claims,
            credits,
            abi.encodeWithSelector(IInferencePayment.InferencePayment__BatchNonceUsed.selector, gateway, 5, 5)
        );
        batch.nonce = 6;
        batch.claimsHash = "other";
        expectBatchRevert(
            batch,
            claims,
            credits,
            abi.encodeWithSelector(
                IInferencePayment.InferencePayment__ClaimsMismatch.selector,
                bytes32("other"),
                keccak256(abi.encode(claims))
            )
        );
        batch.claimsHash = keccak256(abi.encode(claims));
        batch.creditsHash = "other";
        expectBatchRevert(
            batch,
            claims,
            credits,
            abi.encodeWithSelector(
                IInferencePayment.InferencePayment__CreditsMismatch.selector,
                bytes32("other"),
                keccak256(abi.encode(credits))
            )
        );
        expectBatchRevert(
            batch,
            new IInferencePayment.Claim[](0),
            credits,
            abi.encodeWithSelector(IInferencePayment.InferencePayment__EmptyBatch.selector, gateway, 6)
        );
    }

    function test_revert_settleBatchVoucher() public {
        open(SESSION_KEY, 10_000);
        IInferencePayment.Claim[] memory claims = new IInferencePayment.Claim[](1);
        IInferencePayment.Credit[] memory credits = new IInferencePayment.Credit[](0);
        claims[0] = claimOf(client, SESSION_KEY, gateway, 1_000, 10);
        claims[0].cumulative = 1_001;
        expectVoucherRevert(claims, credits, session);
        claims[0] = claimOf(client, SESSION_KEY, stranger, 1_000, 10); // a voucher for another gateway
        expectVoucherRevert(claims, credits, session);
        claims[0] = claimOf(client, SESSION_KEY, gateway, 1_000, 10);
        claims[0].r = 0; // no signature at all
        expectVoucherRevert(claims, credits, session);
        claims[0].signer = address(0);
        expectVoucherRevert(claims, credits, address(0));
    }

    /// @dev A signer of zero, a voucher that recovers nothing: nobody can have paid into such a channel.
    function testFuzz_revert_settleBatchZeroSigner(bytes32 r, bytes32 vs) public {
        IInferencePayment.Claim[] memory claims = new IInferencePayment.Claim[](1);
        claims[0] = IInferencePayment.Claim(client, address(0), 1_000, 10, r, vs);
        IInferencePayment.Credit[] memory credits = new IInferencePayment.Credit[](0);
        expectVoucherRevert(claims, credits, address(0));
    }

    function testFuzz_revert_settleBatchCredits(uint96 sum) public {
        sum = sum % 2_000;
        if (sum >= 797 && sum <= 800) sum = 801;
        open(SESSION_KEY, 10_000);
        IInferencePayment.Claim[] memory claims = new IInferencePayment.Claim[](1);
        claims[0] = claimOf(client, SESSION_KEY, gateway, 1_000, 1_000);
        IInferencePayment.Credit[] memory credits = new IInferencePayment.Credit[](1);
        credits[0] = IInferencePayment.Credit(node, sum);
        expectBatchRevert(
            batchOf(gateway, 1, 3, claims, credits),
            claims,
            credits,
            abi.encodeWithSelector(IInferencePayment.InferencePayment__BadCredits.selector, sum, 797, 800)
        );
    }

    function test_revert_settleBatchSigners() public {
        open(SESSION_KEY, 10_000);
        IInferencePayment.Claim[] memory claims = new IInferencePayment.Claim[](1);
        claims[0] = claimOf(client, SESSION_KEY, gateway, 1_000, 1_000);
        IInferencePayment.Credit[] memory credits = new IInferencePayment.Credit[](2);
        credits[0] = IInferencePayment.Credit(node, 500);
        credits[1] = IInferencePayment.Credit(validatorAt(1), 300);
        expectBatchRevert(
            batchOf(gateway, 1, 1, claims, credits),
            claims,
            credits,
            abi.encodeWithSelector(Quorum.Quorum__SignerExcluded.selector, validatorAt(1))
        );
        // Another address with the same low byte as a signer is somebody else.
        credits[1].payee = address(uint160(validatorAt(1)) ^ (1 << 100));
        settle(batchOf(gateway, 1, 1, claims, credits), claims, credits);
        address own = validatorAt(2);
        vm.prank(client);
        payment.deposit(client, session, own, 1_000);
        claims[0] = claimOf(client, SESSION_KEY, own, 1_000, 1_000);
        credits[1].payee = stranger;
        expectBatchRevert(
            batchOf(own, 1, 1, claims, credits),
            claims,
            credits,
            abi.encodeWithSelector(Quorum.Quorum__SignerExcluded.selector, own)
        );
    }

    function test_settleBatchOfARecentEpoch() public {
        open(SESSION_KEY, 10_000);
        nextEpoch();
        settleOneIn(1, 1, 100); // the epoch before
        vm.warp(START + 2 days);
        settleOneIn(1, 2, 200); // to its last second
        vm.warp(START + 2 days + 1);
        IInferencePayment.Claim[] memory claims = new IInferencePayment.Claim[](1);
        claims[0] = claimOf(client, SESSION_KEY, gateway, 300, 300);
        IInferencePayment.Credit[] memory credits = new IInferencePayment.Credit[](0);
        IInferencePayment.Batch memory batch = batchOf(gateway, 3, 1, claims, credits);
        batch.epoch = 1;
        expectBatchRevert(
            batch, claims, credits, abi.encodeWithSelector(Quorum.Quorum__EpochStale.selector, 1, START + 2 days)
        );
    }

    function test_batchCommitment() public {
        open(SESSION_KEY, 10_000);
        bytes32 first = settleOne(3, 100, 100);
        bytes32 second = settleOne(194, 200, 200); // 191 later: the first is the oldest kept
        vm.assertEq(payment.batchCommitment(gateway, 3), first);
        vm.assertEq(payment.batchCommitment(gateway, 194), second);
        vm.assertEq(payment.batchCommitment(gateway, 100), 0); // a gap
        vm.assertEq(payment.batchCommitment(gateway, 2), 0); // never, and on the place of 194
        vm.assertEq(payment.batchCommitment(gateway, 195), 0); // not yet
        vm.assertEq(payment.batchCommitment(gateway, 0), 0);
        vm.assertEq(payment.batchCommitment(stranger, 3), 0);
        bytes32 third = settleOne(195, 300, 300); // on the place of 3
        vm.assertEq(payment.batchCommitment(gateway, 3), 0);
        vm.assertEq(payment.batchCommitment(gateway, 195), third);
    }

    function testFuzz_batchCommitment(uint16[6] memory gaps) public {
        open(SESSION_KEY, 10_000);
        uint64[] memory nonces = new uint64[](6);
        bytes32[] memory digests = new bytes32[](6);
        uint64 nonce = 0;
        for (uint96 i = 0; i < 6; ++i) {
            nonce += 1 + gaps[i] % 300;
            nonces[i] = nonce;
            digests[i] = settleOne(nonce, 100 * (i + 1), 100 * (i + 1));
        }
        for (uint64 n = 0; n <= nonce + 1; ++n) {
            bytes32 expected = 0;
            for (uint256 i = 0; i < 6; ++i) {
                if (nonces[i] == n && nonce - n < 192) expected = digests[i];
            }
            vm.assertEq(payment.batchCommitment(gateway, n), expected);
        }
    }

    // --- inside ---

    function open(uint256 key, uint96 amount) private {
        vm.prank(client);
        payment.deposit(client, vm.addr(key), gateway, amount);
    }

    function channel(uint256 key) private view returns (bytes32) {
        return payment.channelId(client, vm.addr(key), gateway);
    }

    /// @dev Draws the first channel down to `total`, of which the nodes' share rounds away into many receipts.
    function settleOne(uint64 nonce, uint96 cumulative, uint96 total) private returns (bytes32) {
        IInferencePayment.Claim[] memory claims = new IInferencePayment.Claim[](1);
        claims[0] = claimOf(client, SESSION_KEY, gateway, cumulative, total);
        (, uint96 spent,) = payment.channels(channel(SESSION_KEY));
        IInferencePayment.Credit[] memory credits = new IInferencePayment.Credit[](1);
        credits[0] = IInferencePayment.Credit(node, uint96(uint256(total - spent) * 80 / 100));
        IInferencePayment.Batch memory batch = batchOf(gateway, nonce, 1, claims, credits);
        settle(batch, claims, credits);
        return payment.hashBatch(batch);
    }

    function settleOneIn(uint32 epoch, uint64 nonce, uint96 total) private {
        IInferencePayment.Claim[] memory claims = new IInferencePayment.Claim[](1);
        claims[0] = claimOf(client, SESSION_KEY, gateway, total, total);
        IInferencePayment.Credit[] memory credits = new IInferencePayment.Credit[](1);
        credits[0] = IInferencePayment.Credit(node, 80);
        IInferencePayment.Batch memory batch = batchOf(gateway, nonce, 1, claims, credits);
        batch.epoch = epoch;
        settle(batch, claims, credits);
    }

    function expectBatchRevert(
        IInferencePayment.Batch memory batch,
        IInferencePayment.Claim[] memory claims,
        IInferencePayment.Credit[] memory credits,
        bytes memory reason
    ) private {
        bytes memory signatures = signaturesOf(7, payment.hashBatch(batch));
        vm.expectRevert(reason);
        payment.settleBatch(batch, claims, credits, 7, signatures);
    }

    function expectVoucherRevert(
        IInferencePayment.Claim[] memory claims,
        IInferencePayment.Credit[] memory credits,
        address signer
    ) private {
        expectBatchRevert(
            batchOf(gateway, 1, 1_000, claims, credits),
            claims,
            credits,
            abi.encodeWithSelector(
                IInferencePayment.InferencePayment__BadVoucher.selector,
                0,
                payment.channelId(client, signer, gateway),
                signer
            )
        );
    }

    function expectSpent(uint256 key, uint256 expected) private view {
        (, uint96 spent,) = payment.channels(channel(key));
        vm.assertEq(spent, expected, "spent");
    }

    function expectFree(address account, uint256 expected) private view {
        (uint96 free,) = payment.accounts(account);
        vm.assertEq(free, expected, "free");
    }

    function expectGlobals(uint256 treasury, uint256 pool) private view {
        (uint96 treasury_, uint96 pool_,) = payment.globals();
        vm.assertEq(treasury_, treasury, "treasury");
        vm.assertEq(pool_, pool, "validator pool");
    }
}
