// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {IInferencePayment} from "../../src/interfaces/IInferencePayment.sol";
import {Quorum} from "../../src/libraries/Quorum.sol";
import {Network} from "../Network.sol";

contract EscrowTest is Network {
    uint96 private constant HELD = 1_000;
    bytes32 private constant OUTPUT = keccak256("output");

    function test_initiateInferenceRequest() public {
        top(5_000);
        IInferencePayment.Request memory request = requestOf(HELD);
        bytes32 expected = payment.requestId(client, 0);
        bytes memory signatures = signaturesOf(7, preprocessOf(request));
        vm.prank(client);
        vm.expectEmit(address(payment));
        emit IInferencePayment.RequestInitiated(expected, client, gateway, HELD, request.expiry);
        vm.assertEq(payment.initiateInferenceRequest(request, 7, signatures), expected);
        expectFree(client, 4_000);
        vm.assertEq(payment.requests(client, 0), keccak256(abi.encode(request)));
        vm.assertEq(payment.requests(client, 1), 0);
        (, uint64 next) = payment.accounts(client);
        vm.assertEq(next, 1);
    }

    function testFuzz_initiateInferenceRequest(uint96 funds, uint96 amount, uint64 expiry, uint64 nonce) public {
        top(uint96(1 + funds % 1_000 ether));
        funds = uint96(1 + funds % 1_000 ether);
        IInferencePayment.Request memory request = requestOf(amount % 1_000 ether);
        request.expiry = uint64(START - 1 days + expiry % 3 days);
        if (nonce % 4 == 0) request.nonce = nonce;
        bytes memory signatures = signaturesOf(7, preprocessOf(request));
        bool accepted = request.amount > 0 && request.amount <= funds && request.expiry > START
            && request.expiry <= START + 1 days && request.nonce == 0;
        vm.prank(client);
        (bool success,) =
            address(payment).call(abi.encodeCall(IInferencePayment.initiateInferenceRequest, (request, 7, signatures)));
        vm.assertEq(success, accepted);
        expectFree(client, accepted ? funds - request.amount : funds);
    }

    function test_revert_initiateInferenceRequest() public {
        top(5_000);
        IInferencePayment.Request memory request = requestOf(HELD);
        expectInitiateRevert(
            request,
            stranger,
            abi.encodeWithSelector(IInferencePayment.InferencePayment__NotClient.selector, stranger, client)
        );
        request.amount = 0;
        expectInitiateRevert(
            request, client, abi.encodeWithSelector(IInferencePayment.InferencePayment__ZeroAmount.selector)
        );
        request.amount = 5_001;
        expectInitiateRevert(
            request,
            client,
            abi.encodeWithSelector(IInferencePayment.InferencePayment__InsufficientFunds.selector, client, 5_000, 5_001)
        );
        request = requestOf(HELD);
        request.nonce = 1;
        expectInitiateRevert(
            request,
            client,
            abi.encodeWithSelector(IInferencePayment.InferencePayment__WrongRequestNonce.selector, client, 1, 0)
        );
        request = requestOf(HELD);
        request.expiry = uint64(START);
        expectInitiateRevert(
            request,
            client,
            abi.encodeWithSelector(IInferencePayment.InferencePayment__BadExpiry.selector, START, START + 1 days)
        );
        request.expiry = uint64(START + 1 days + 1);
        expectInitiateRevert(
            request,
            client,
            abi.encodeWithSelector(
                IInferencePayment.InferencePayment__BadExpiry.selector, START + 1 days + 1, START + 1 days
            )
        );
    }

    function test_revert_initiateInferenceRequestQuorum() public {
        top(5_000);
        IInferencePayment.Request memory request = requestOf(HELD);
        request.node = validatorAt(0);
        expectInitiateRevert(
            request, client, abi.encodeWithSelector(Quorum.Quorum__SignerExcluded.selector, validatorAt(0))
        );
        request = requestOf(HELD);
        request.gateway = validatorAt(2);
        expectInitiateRevert(
            request, client, abi.encodeWithSelector(Quorum.Quorum__SignerExcluded.selector, validatorAt(2))
        );
        request = requestOf(HELD);
        bytes memory signatures = signaturesOf(7, preprocessOf(request));
        request.amount = HELD + 1; // other terms than those that were signed
        vm.prank(client);
        vm.expectPartialRevert(Quorum.Quorum__BadSignature.selector);
        payment.initiateInferenceRequest(request, 7, signatures);
        vm.warp(START + 2 days + 1);
        request = requestOf(HELD);
        expectInitiateRevert(
            request, client, abi.encodeWithSelector(Quorum.Quorum__EpochStale.selector, 1, START + 2 days)
        );
    }

    function test_revert_initiateInferenceRequestPaused() public {
        top(5_000);
        vm.prank(guardian);
        payment.pause();
        expectInitiateRevert(
            requestOf(HELD), client, abi.encodeWithSelector(IInferencePayment.InferencePayment__Paused.selector)
        );
    }

    /// @dev What the ABI's types can't hold is refused, as a decoder would.
    function testFuzz_revert_initiateDirtyWord(uint8 member, uint8 bit) public {
        top(5_000);
        IInferencePayment.Request memory request = requestOf(HELD);
        bytes memory signatures = signaturesOf(7, preprocessOf(request));
        bytes memory data = abi.encodeCall(IInferencePayment.initiateInferenceRequest, (request, 7, signatures));
        uint256[7] memory sizes = [uint256(160), 64, 160, 160, 96, 32, 64];
        uint256 place = member % 7;
        uint256 shift = sizes[place] + bit % (256 - sizes[place]);
        assembly ("memory-safe") {
            let word := add(add(data, 36), mul(place, 32))
            mstore(word, or(mload(word), shl(shift, 1)))
        }
        vm.prank(client);
        (bool success, bytes memory reason) = address(payment).call(data);
        vm.assertFalse(success);
        vm.assertEq(reason.length, 0);
    }

    function test_manyRequestsAtOnce() public {
        top(20_000);
        IInferencePayment.Request[] memory live = new IInferencePayment.Request[](16);
        for (uint256 i = 0; i < 16; ++i) {
            live[i] = requestOf(HELD);
            initiate(live[i]);
        }
        expectInitiateRevert(
            requestOf(HELD),
            client,
            abi.encodeWithSelector(IInferencePayment.InferencePayment__TooManyRequests.selector, client, 16)
        );
        fail(live[0]);
        IInferencePayment.Request memory next = requestOf(HELD);
        initiate(next);
        vm.assertEq(payment.requests(client, 0), 0);
        vm.assertEq(payment.requests(client, 16), keccak256(abi.encode(next)));
        vm.assertEq(payment.requests(client, 1), keccak256(abi.encode(live[1])));
        complete(live[1], OUTPUT, 1);
        vm.assertEq(payment.requests(client, 1), 0);
    }

    function test_completeInferenceRequest() public {
        top(5_000);
        IInferencePayment.Request memory request = requestOf(HELD);
        bytes32 id = initiate(request);
        bytes memory signatures = signaturesOf(7, payment.hashCompletion(id, OUTPUT, 600));
        vm.expectEmit(address(payment));
        emit IInferencePayment.RequestCompleted(id, 600, OUTPUT);
        payment.completeInferenceRequest(request, OUTPUT, 600, 7, signatures);
        vm.assertEq(token.balanceOf(node), 480);
        expectFree(gateway, 60);
        expectFree(client, 4_400);
        vm.assertEq(payment.networkShare(gateway), 60);
        expectGlobals(0, 0);
        vm.assertEq(payment.requests(client, 0), 0);
    }

    function testFuzz_completeInferenceRequest(uint96 amount, uint96 fee, bool itself) public {
        amount = uint96(1 + amount % 1_000_000 ether);
        fee = fee % (amount + 1);
        top(amount);
        IInferencePayment.Request memory request = requestOf(amount);
        if (itself) request.gateway = client; // who is both keeps both
        initiate(request);
        complete(request, OUTPUT, fee);
        uint256 node80 = uint256(fee) * 80 / 100;
        uint256 network = fee / 20 * 2;
        vm.assertEq(token.balanceOf(node), node80);
        expectFree(request.gateway, itself ? amount - fee + fee / 10 : fee / 10);
        vm.assertEq(payment.networkShare(request.gateway), network);
        expectGlobals(fee - node80 - fee / 10 - network, 0);
        (, uint64 next) = payment.accounts(client);
        vm.assertEq(next, 1);
        vm.assertEq(token.balanceOf(address(payment)), amount - node80);
    }

    function test_completeInferenceRequestCreditsWhereTheTokenRefuses() public {
        top(5_000);
        IInferencePayment.Request memory request = requestOf(HELD);
        initiate(request);
        vm.mockCallRevert(address(token), abi.encodeCall(IERC20.transfer, (node, 800)), "blocked");
        complete(request, OUTPUT, HELD);
        expectFree(node, 800);
    }

    function test_revert_completeInferenceRequest() public {
        top(5_000);
        IInferencePayment.Request memory request = requestOf(HELD);
        bytes32 id = initiate(request);
        bytes memory signatures = signaturesOf(7, payment.hashCompletion(id, OUTPUT, HELD + 1));
        vm.expectRevert(abi.encodeWithSelector(IInferencePayment.InferencePayment__FeeTooHigh.selector, HELD + 1, HELD));
        payment.completeInferenceRequest(request, OUTPUT, HELD + 1, 7, signatures);
        vm.expectPartialRevert(Quorum.Quorum__BadSignature.selector);
        payment.completeInferenceRequest(request, OUTPUT, HELD, 7, signatures);
        signatures = signaturesOf(7, payment.hashCompletion(id, OUTPUT, HELD));
        vm.warp(uint256(request.expiry) + 1);
        vm.expectRevert(
            abi.encodeWithSelector(IInferencePayment.InferencePayment__Expired.selector, id, request.expiry)
        );
        payment.completeInferenceRequest(request, OUTPUT, HELD, 7, signatures);
        vm.warp(request.expiry);
        payment.completeInferenceRequest(request, OUTPUT, HELD, 7, signatures);
        expectNotInEscrow(request);
    }

    /// @dev A token with more than 2^96 units could carry a sum out of its field: refused.
    function test_revert_completeInferenceRequestOverflow() public {
        top(5_000);
        bytes32 slot = keccak256(abi.encode(gateway, accountsSlot()));
        IInferencePayment.Request memory request = requestOf(HELD);
        bytes32 id = initiate(request);
        bytes memory signatures = signaturesOf(7, payment.hashCompletion(id, OUTPUT, HELD));
        uint256 full = type(uint96).max;
        vm.store(address(payment), slot, bytes32(full));
        vm.expectRevert(abi.encodeWithSelector(SafeCast.SafeCastOverflowedUintDowncast.selector, 96, full + 100));
        payment.completeInferenceRequest(request, OUTPUT, HELD, 7, signatures);
        vm.store(address(payment), slot, bytes32(full << 160));
        vm.expectRevert(abi.encodeWithSelector(SafeCast.SafeCastOverflowedUintDowncast.selector, 96, full + 100));
        payment.completeInferenceRequest(request, OUTPUT, HELD, 7, signatures);
    }

    function test_markRequestFailed() public {
        top(5_000);
        IInferencePayment.Request memory request = requestOf(HELD);
        bytes32 id = initiate(request);
        bytes memory signatures = signaturesOf(7, payment.hashFailure(id));
        vm.expectEmit(address(payment));
        emit IInferencePayment.RequestRefunded(id, HELD, true);
        payment.markRequestFailed(request, 7, signatures);
        expectFree(client, 5_000);
        expectNotInEscrow(request);
    }

    function testFuzz_markRequestFailed(uint96 amount, uint32 later) public {
        amount = uint96(1 + amount % 1_000_000 ether);
        top(amount);
        IInferencePayment.Request memory request = requestOf(amount);
        initiate(request);
        vm.warp(START + later); // also after the expiry, also with the members of an epoch long past
        fail(request);
        expectFree(client, amount);
    }

    function test_revert_markRequestFailed() public {
        top(5_000);
        IInferencePayment.Request memory request = requestOf(HELD);
        bytes32 id = initiate(request);
        bytes memory signatures = signaturesOf(7, payment.hashCompletion(id, OUTPUT, HELD));
        vm.expectPartialRevert(Quorum.Quorum__BadSignature.selector);
        payment.markRequestFailed(request, 7, signatures);
        request.amount = HELD + 1;
        expectNotInEscrow(request);
    }

    function test_handleExpiredRequest() public {
        top(5_000);
        IInferencePayment.Request memory request = requestOf(HELD);
        bytes32 id = initiate(request);
        vm.prank(guardian);
        payment.pause();
        vm.warp(uint256(request.expiry) + 1);
        vm.prank(stranger);
        vm.expectEmit(address(payment));
        emit IInferencePayment.RequestRefunded(id, HELD, false);
        payment.handleExpiredRequest(request);
        expectFree(client, 5_000);
        expectNotInEscrow(request);
    }

    function testFuzz_handleExpiredRequest(uint96 amount, uint32 later) public {
        amount = uint96(1 + amount % 1_000_000 ether);
        top(amount);
        IInferencePayment.Request memory request = requestOf(amount);
        bytes32 id = initiate(request);
        vm.warp(START + later);
        bool expired = START + later > request.expiry;
        if (!expired) {
            vm.expectRevert(
                abi.encodeWithSelector(IInferencePayment.InferencePayment__NotExpired.selector, id, request.expiry)
            );
        }
        payment.handleExpiredRequest(request);
        expectFree(client, expired ? amount : 0);
    }

    function test_revert_handleExpiredRequest() public {
        expectNotInEscrow(requestOf(HELD));
    }

    // --- inside ---

    function top(uint96 amount) private {
        vm.prank(client);
        payment.depositAccount(amount);
    }

    function expectInitiateRevert(IInferencePayment.Request memory request, address sender, bytes memory reason)
        private
    {
        bytes memory signatures = signaturesOf(7, preprocessOf(request));
        vm.prank(sender);
        vm.expectRevert(reason);
        payment.initiateInferenceRequest(request, 7, signatures);
    }

    /// @dev No way to end it leads anywhere.
    function expectNotInEscrow(IInferencePayment.Request memory request) private {
        bytes32 id = payment.requestId(request.client, request.nonce);
        bytes memory reason = abi.encodeWithSelector(IInferencePayment.InferencePayment__NotInEscrow.selector, id);
        bytes memory completion = signaturesOf(7, payment.hashCompletion(id, OUTPUT, 1));
        bytes memory failure = signaturesOf(7, payment.hashFailure(id));
        vm.expectRevert(reason);
        payment.completeInferenceRequest(request, OUTPUT, 1, 7, completion);
        vm.expectRevert(reason);
        payment.markRequestFailed(request, 7, failure);
        vm.expectRevert(reason);
        payment.handleExpiredRequest(request);
    }

    /// @dev The slot of the accounts' mapping, found by what it holds.
    function accountsSlot() private view returns (uint256) {
        (uint96 free,) = payment.accounts(client);
        for (uint256 slot = 0; slot < 16; ++slot) {
            if (uint256(vm.load(address(payment), keccak256(abi.encode(client, slot)))) == free) return slot;
        }
        revert("no such slot");
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
