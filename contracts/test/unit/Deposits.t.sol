// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IAccessControl} from "@openzeppelin/contracts/access/IAccessControl.sol";
import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";
import {InferencePayment} from "../../src/InferencePayment.sol";
import {IInferencePayment} from "../../src/interfaces/IInferencePayment.sol";
import {INCNToken} from "../../src/interfaces/INCNToken.sol";
import {IValidatorRegistry} from "../../src/interfaces/IValidatorRegistry.sol";
import {Network} from "../Network.sol";

contract DepositsTest is Network {
    bytes32 private constant SALT = keccak256("salt");

    // --- constructor ---

    function test_constructor() public view {
        vm.assertEq(address(payment.token()), address(token));
        vm.assertEq(address(payment.registry()), address(registry));
        vm.assertEq(payment.WITHDRAWAL_DELAY(), 2 days);
        vm.assertEq(payment.WITHDRAWAL_WINDOW(), 7 days);
        vm.assertEq(payment.MAX_REQUEST_TIME(), 1 days);
        vm.assertTrue(payment.hasRole(payment.DEFAULT_ADMIN_ROLE(), timelock));
        vm.assertTrue(payment.hasRole(payment.GUARDIAN_ROLE(), guardian));
        vm.assertFalse(payment.hasRole(payment.DEFAULT_ADMIN_ROLE(), address(this)));
        expectGlobals(0, 0, false);
    }

    function testFuzz_constructor(IInferencePayment.Config memory config) public {
        // Bound for 14 days, of which the epoch's signatures take 2 and disputes 7.
        bool sound = config.maxRequestTime > 0 && config.maxRequestTime <= 5 days && config.withdrawalWindow > 0;
        if (!sound) {
            vm.expectRevert(abi.encodeWithSelector(IInferencePayment.InferencePayment__BadConfig.selector, config));
        }
        new InferencePayment(token, registry, timelock, guardian, config);
    }

    function test_revert_constructor() public {
        bytes memory zero = abi.encodeWithSelector(IInferencePayment.InferencePayment__ZeroAddress.selector);
        vm.expectRevert(zero);
        new InferencePayment(INCNToken(address(0)), registry, timelock, guardian, paymentConfig());
        vm.expectRevert(zero);
        new InferencePayment(token, IValidatorRegistry(address(0)), timelock, guardian, paymentConfig());
        vm.expectRevert(zero);
        new InferencePayment(token, registry, address(0), guardian, paymentConfig());
        IInferencePayment.Config memory config = paymentConfig();
        config.maxRequestTime = 5 days + 1;
        vm.expectRevert(abi.encodeWithSelector(IInferencePayment.InferencePayment__BadConfig.selector, config));
        new InferencePayment(token, registry, timelock, guardian, config);
        config.maxRequestTime = 5 days;
        new InferencePayment(token, registry, timelock, guardian, config);
        config.maxRequestTime = 0;
        vm.expectRevert(abi.encodeWithSelector(IInferencePayment.InferencePayment__BadConfig.selector, config));
        new InferencePayment(token, registry, timelock, guardian, config);
        config = paymentConfig();
        config.withdrawalWindow = 0;
        vm.expectRevert(abi.encodeWithSelector(IInferencePayment.InferencePayment__BadConfig.selector, config));
        new InferencePayment(token, registry, timelock, guardian, config);
    }

    // --- deposit ---

    function test_deposit() public {
        vm.prank(client);
        vm.expectEmit(address(payment));
        emit IInferencePayment.Deposited(channel(), client, gateway, session, 5 ether, 5 ether);
        payment.deposit(client, session, gateway, 5 ether);
        expectChannel(5 ether, 0, 0);
        fund(stranger, 2 ether);
        vm.prank(stranger);
        payment.deposit(client, session, gateway, 2 ether); // anybody may pay for a client
        expectChannel(7 ether, 0, 0);
        vm.assertEq(token.balanceOf(address(payment)), 7 ether);
    }

    function testFuzz_deposit(uint96 first, uint96 second) public {
        first = uint96(1 + first % 400_000 ether);
        second = uint96(1 + second % 400_000 ether);
        vm.startPrank(client);
        payment.deposit(client, session, gateway, first);
        payment.deposit(client, session, gateway, second);
        vm.stopPrank();
        expectChannel(uint256(first) + second, 0, 0);
        vm.assertEq(token.balanceOf(address(payment)), uint256(first) + second);
    }

    function test_revert_deposit() public {
        bytes memory zero = abi.encodeWithSelector(IInferencePayment.InferencePayment__ZeroAddress.selector);
        vm.startPrank(client);
        vm.expectRevert(zero);
        payment.deposit(address(0), session, gateway, 1);
        vm.expectRevert(zero);
        payment.deposit(client, address(0), gateway, 1);
        vm.expectRevert(zero);
        payment.deposit(client, session, address(0), 1);
        vm.expectRevert(IInferencePayment.InferencePayment__ZeroAmount.selector);
        payment.deposit(client, session, gateway, 0);
        vm.expectRevert(
            abi.encodeWithSelector(
                IERC20Errors.ERC20InsufficientBalance.selector, client, 1_000_000 ether, 1_000_001 ether
            )
        );
        payment.deposit(client, session, gateway, 1_000_001 ether);
        vm.stopPrank();
        vm.mockCall(
            address(token), abi.encodeCall(IERC20.transferFrom, (client, address(payment), 5 ether)), abi.encode(true)
        );
        vm.prank(client);
        vm.expectRevert(
            abi.encodeWithSelector(IInferencePayment.InferencePayment__TransferMismatch.selector, 0, 5 ether)
        );
        payment.deposit(client, session, gateway, 5 ether);
    }

    // --- depositWithAuthorization ---

    function test_depositWithAuthorization() public {
        bytes memory signature = authorization(5 ether, START + 1, channel());
        vm.prank(stranger); // anybody may submit it
        payment.depositWithAuthorization(client, session, gateway, 5 ether, 0, START + 1, SALT, signature);
        expectChannel(5 ether, 0, 0);
        vm.assertTrue(token.authorizationState(client, keccak256(abi.encode(channel(), SALT))));
    }

    function testFuzz_depositWithAuthorization(uint96 amount) public {
        amount = uint96(1 + amount % 1_000_000 ether);
        bytes memory signature = authorization(amount, START + 1, channel());
        payment.depositWithAuthorization(client, session, gateway, amount, 0, START + 1, SALT, signature);
        expectChannel(amount, 0, 0);
    }

    function test_revert_depositWithAuthorization() public {
        bytes memory signature = authorization(5 ether, START + 1, channel());
        // The signature fixes the channel: neither another signer nor another gateway.
        vm.expectRevert(ERC3009.ERC3009InvalidSignature.selector);
        payment.depositWithAuthorization(client, stranger, gateway, 5 ether, 0, START + 1, SALT, signature);
        vm.expectRevert(ERC3009.ERC3009InvalidSignature.selector);
        payment.depositWithAuthorization(client, session, stranger, 5 ether, 0, START + 1, SALT, signature);
        payment.depositWithAuthorization(client, session, gateway, 5 ether, 0, START + 1, SALT, signature);
        vm.expectPartialRevert(ERC3009.ERC3009UsedAuthorization.selector);
        payment.depositWithAuthorization(client, session, gateway, 5 ether, 0, START + 1, SALT, signature);
    }

    // --- exit of a channel ---

    function test_exit() public {
        open(5 ether);
        vm.prank(client);
        vm.expectEmit(address(payment));
        emit IInferencePayment.WithdrawalRequested(channel(), client, START + 2 days);
        payment.requestWithdrawal(session, gateway);
        expectChannel(5 ether, 0, START + 2 days);
        vm.warp(START + 2 days);
        vm.prank(stranger); // anybody may finalize; the client is paid
        payment.finalizeWithdrawal(client, session, gateway);
        expectChannel(0, 0, 0);
        vm.assertEq(token.balanceOf(client), 1_000_000 ether);
    }

    function testFuzz_exitAfterSpending(uint96 deposited, uint96 spent) public {
        deposited = uint96(2 + deposited % 1_000_000 ether);
        spent = uint96(1 + spent % (deposited - 1));
        open(deposited);
        spend(1, spent);
        vm.prank(client);
        payment.requestWithdrawal(session, gateway);
        vm.warp(START + 2 days);
        payment.finalizeWithdrawal(client, session, gateway);
        expectChannel(spent, spent, 0);
        vm.assertEq(token.balanceOf(client), 1_000_000 ether - spent);
    }

    function test_exitEndsOrLapses() public {
        open(5 ether);
        vm.startPrank(client);
        payment.requestWithdrawal(session, gateway);
        payment.cancelWithdrawal(session, gateway);
        expectChannel(5 ether, 0, 0);
        payment.requestWithdrawal(session, gateway);
        vm.warp(START + 9 days + 1); // the window is over: an exit can't be kept in readiness
        vm.expectRevert(abi.encodeWithSelector(IInferencePayment.InferencePayment__NotExiting.selector, channel()));
        payment.finalizeWithdrawal(client, session, gateway);
        vm.expectRevert(abi.encodeWithSelector(IInferencePayment.InferencePayment__NotExiting.selector, channel()));
        payment.cancelWithdrawal(session, gateway);
        payment.requestWithdrawal(session, gateway);
        expectChannel(5 ether, 0, START + 11 days + 1);
        vm.stopPrank();
    }

    function test_exitOutlivesDeposits() public {
        open(5 ether);
        vm.prank(client);
        payment.requestWithdrawal(session, gateway);
        fund(stranger, 1);
        vm.prank(stranger);
        payment.deposit(client, session, gateway, 1);
        expectChannel(5 ether + 1, 0, START + 2 days);
    }

    function test_revert_exit() public {
        vm.startPrank(client);
        vm.expectRevert(abi.encodeWithSelector(IInferencePayment.InferencePayment__ChannelEmpty.selector, channel()));
        payment.requestWithdrawal(session, gateway);
        payment.deposit(client, session, gateway, 5 ether);
        vm.expectRevert(abi.encodeWithSelector(IInferencePayment.InferencePayment__NotExiting.selector, channel()));
        payment.cancelWithdrawal(session, gateway);
        vm.expectRevert(abi.encodeWithSelector(IInferencePayment.InferencePayment__NotExiting.selector, channel()));
        payment.finalizeWithdrawal(client, session, gateway);
        payment.requestWithdrawal(session, gateway);
        vm.expectRevert(
            abi.encodeWithSelector(
                IInferencePayment.InferencePayment__AlreadyExiting.selector, channel(), START + 2 days
            )
        );
        payment.requestWithdrawal(session, gateway);
        vm.warp(START + 2 days - 1);
        vm.expectRevert(
            abi.encodeWithSelector(IInferencePayment.InferencePayment__StillLocked.selector, channel(), START + 2 days)
        );
        payment.finalizeWithdrawal(client, session, gateway);
        vm.stopPrank();
    }

    // --- accounts ---

    function test_account() public {
        vm.startPrank(client);
        vm.expectEmit(address(payment));
        emit IInferencePayment.AccountDeposited(client, 5 ether);
        payment.depositAccount(5 ether);
        payment.withdraw(2 ether);
        vm.stopPrank();
        expectFree(client, 3 ether);
        vm.assertEq(token.balanceOf(client), 1_000_000 ether - 3 ether);
    }

    function testFuzz_account(uint96 deposited, uint96 withdrawn) public {
        deposited = uint96(1 + deposited % 1_000_000 ether);
        withdrawn = uint96(1 + withdrawn % deposited);
        vm.startPrank(client);
        payment.depositAccount(deposited);
        payment.withdraw(withdrawn);
        vm.stopPrank();
        expectFree(client, deposited - withdrawn);
    }

    function test_revert_account() public {
        vm.startPrank(client);
        vm.expectRevert(IInferencePayment.InferencePayment__ZeroAmount.selector);
        payment.depositAccount(0);
        vm.expectRevert(IInferencePayment.InferencePayment__ZeroAmount.selector);
        payment.withdraw(0);
        payment.depositAccount(5);
        vm.expectRevert(
            abi.encodeWithSelector(IInferencePayment.InferencePayment__InsufficientFunds.selector, client, 5, 6)
        );
        payment.withdraw(6);
        vm.stopPrank();
    }

    // --- money of the network ---

    function test_bookNetworkShare() public {
        request(20_007);
        // 80% of 20,007 is 16,005, 10% is 2,000, 5% is 1,000 twice, and 2 are left.
        expectGlobals(2, 0, false);
        vm.assertEq(payment.networkShare(gateway), 2_000);
        expectFree(gateway, 2_000);
        vm.expectEmit(address(payment));
        emit IInferencePayment.NetworkShareBooked(gateway, 1_000);
        payment.bookNetworkShare(gateway);
        expectGlobals(1_002, 1_000, false);
        vm.assertEq(payment.networkShare(gateway), 0);
        vm.expectRevert(IInferencePayment.InferencePayment__ZeroAmount.selector);
        payment.bookNetworkShare(gateway);
    }

    function testFuzz_bookNetworkShareOnWithdrawal(uint96 fee) public {
        fee = uint96(20 + fee % 1_000_000 ether);
        request(fee);
        vm.prank(gateway);
        payment.withdraw(fee / 10);
        vm.assertEq(token.balanceOf(gateway), fee / 10);
        vm.assertEq(payment.networkShare(gateway), 0);
        uint256 node80 = uint256(fee) * 80 / 100;
        expectGlobals(fee - node80 - fee / 10 - fee / 20, fee / 20, false);
    }

    function test_distributeValidatorPool() public {
        open(1_000);
        spend(1, 1_000);
        expectGlobals(50, 50, false);
        vm.prank(stranger);
        vm.expectEmit(address(payment));
        emit IInferencePayment.ValidatorPoolDistributed(50);
        payment.distributeValidatorPool();
        expectGlobals(50, 0, false);
        (,,,, uint96 rewards) = registry.validators(validatorAt(0));
        vm.assertEq(rewards, 10);
        vm.assertEq(token.allowance(address(payment), address(registry)), 0);
        vm.expectRevert(IInferencePayment.InferencePayment__ZeroAmount.selector);
        payment.distributeValidatorPool();
    }

    function testFuzz_withdrawTreasury(uint96 spent, uint96 amount) public {
        spent = uint96(20 + spent % 1_000_000 ether);
        open(spent);
        spend(1, spent);
        (uint96 treasury,,) = payment.globals();
        amount = amount % (treasury + 1);
        vm.prank(timelock);
        payment.withdrawTreasury(stranger, amount);
        vm.assertEq(token.balanceOf(stranger), amount);
        (uint96 left,,) = payment.globals();
        vm.assertEq(left, treasury - amount);
    }

    function test_revert_withdrawTreasury() public {
        bytes32 admin = payment.DEFAULT_ADMIN_ROLE();
        vm.expectRevert(unauthorized(address(this), admin));
        payment.withdrawTreasury(stranger, 0);
        vm.prank(timelock);
        vm.expectRevert(
            abi.encodeWithSelector(
                IInferencePayment.InferencePayment__InsufficientFunds.selector, address(payment), 0, 1
            )
        );
        payment.withdrawTreasury(stranger, 1);
    }

    // --- pause ---

    function test_pause() public {
        open(5 ether);
        vm.prank(client);
        payment.requestWithdrawal(session, gateway);
        vm.prank(guardian);
        payment.pause();
        expectGlobals(0, 0, true);
        bytes memory paused = abi.encodeWithSelector(IInferencePayment.InferencePayment__Paused.selector);
        bytes memory signature = authorization(1, START + 1, channel());
        vm.startPrank(client);
        vm.expectRevert(paused);
        payment.deposit(client, session, gateway, 1);
        vm.expectRevert(paused);
        payment.depositWithAuthorization(client, session, gateway, 1, 0, START + 1, SALT, signature);
        vm.expectRevert(paused);
        payment.depositAccount(1);
        vm.stopPrank();
        spend(1, 1 ether); // settlement goes on
        vm.warp(START + 2 days);
        payment.finalizeWithdrawal(client, session, gateway); // and so do withdrawals
        vm.prank(timelock);
        payment.unpause();
        open(1);
    }

    function test_revert_pause() public {
        bytes32 admin = payment.DEFAULT_ADMIN_ROLE();
        bytes32 role = payment.GUARDIAN_ROLE();
        vm.expectRevert(unauthorized(address(this), role));
        payment.pause();
        vm.prank(guardian);
        vm.expectRevert(unauthorized(guardian, admin));
        payment.unpause();
    }

    // --- inside ---

    function channel() private view returns (bytes32) {
        return keccak256(abi.encode(client, session, gateway));
    }

    function open(uint96 amount) private {
        vm.prank(client);
        payment.deposit(client, session, gateway, amount);
    }

    /// @dev Draws the channel down to `total` in a batch that pays the node all that it may get.
    function spend(uint64 nonce, uint96 total) private {
        IInferencePayment.Claim[] memory claims = new IInferencePayment.Claim[](1);
        claims[0] = claimOf(client, SESSION_KEY, gateway, total, total);
        IInferencePayment.Credit[] memory credits = new IInferencePayment.Credit[](1);
        credits[0] = IInferencePayment.Credit(node, uint96(uint256(total) * 80 / 100));
        settle(batchOf(gateway, nonce, 1, claims, credits), claims, credits);
    }

    /// @dev A request through escrow that costs all that was held.
    function request(uint96 fee) private {
        vm.prank(client);
        payment.depositAccount(fee);
        IInferencePayment.Request memory terms = requestOf(fee);
        initiate(terms);
        complete(terms, "output", fee);
    }

    function authorization(uint96 amount, uint256 validBefore, bytes32 id) private view returns (bytes memory) {
        bytes32 typeHash = keccak256(
            "ReceiveWithAuthorization(address from,address to,uint256 value,"
            "uint256 validAfter,uint256 validBefore,bytes32 nonce)"
        );
        bytes32 nonce = keccak256(abi.encode(id, SALT));
        bytes32 structHash = keccak256(abi.encode(typeHash, client, address(payment), amount, 0, validBefore, nonce));
        return signatureOf(CLIENT_KEY, keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), structHash)));
    }

    function expectChannel(uint256 deposited, uint256 spent, uint256 unlockAt) private view {
        (uint96 deposited_, uint96 spent_, uint64 unlockAt_) = payment.channels(channel());
        vm.assertEq(deposited_, deposited, "deposited");
        vm.assertEq(spent_, spent, "spent");
        vm.assertEq(unlockAt_, unlockAt, "unlockAt");
    }

    function expectFree(address account, uint256 expected) private view {
        (uint96 free,) = payment.accounts(account);
        vm.assertEq(free, expected, "free");
    }

    function expectGlobals(uint256 treasury, uint256 pool, bool paused) private view {
        (uint96 treasury_, uint96 pool_, bool paused_) = payment.globals();
        vm.assertEq(treasury_, treasury, "treasury");
        vm.assertEq(pool_, pool, "validator pool");
        vm.assertEq(paused_, paused);
    }

    function unauthorized(address account, bytes32 role) private pure returns (bytes memory) {
        return abi.encodeWithSelector(IAccessControl.AccessControlUnauthorizedAccount.selector, account, role);
    }
}
