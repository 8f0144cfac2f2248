// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {IInferencePayment} from "../../src/interfaces/IInferencePayment.sol";
import {IValidatorRegistry} from "../../src/interfaces/IValidatorRegistry.sol";
import {HostileToken} from "../attacks/HostileToken.sol";
import {Checks} from "./Checks.sol";
import {Model} from "./Model.sol";

/// @title Everything that happens to the network
/// @notice Every action predicts what the contracts answer: an action that reverts is a failure.
contract Handler is Checks {
    constructor(bool hostile_) Model(hostile_) {}

    function setUp() public override {
        super.setUp();
        if (hostile) _arm();
    }

    // --- the network ---

    function skipTime(uint256 seed) external {
        _seed(seed);
        uint256 kind = _random(16);
        if (kind == 0) vm.warp(block.timestamp + 8 days);
        else if (kind < 4) vm.warp(block.timestamp + 1 days);
        else vm.warp(block.timestamp + 1 + _random(2 hours));
        _count("skip time");
    }

    function pause(uint256 seed) external {
        _seed(seed);
        _must(guardian, address(payment), abi.encodeCall(payment.pause, ()));
        paused = true;
        _count("pause");
        // Whoever pauses can't be told to end it, only the admin can.
        (bool success,) = _try(guardian, address(payment), abi.encodeCall(payment.unpause, ()));
        vm.assertFalse(success, "the guardian ended the pause");
    }

    function unpause(uint256 seed) external {
        _seed(seed);
        _must(timelock, address(payment), abi.encodeCall(payment.unpause, ()));
        paused = false;
        _count("unpause");
    }

    function setThreshold(uint256 seed) external {
        _seed(seed);
        bytes memory data = abi.encodeCall(registry.setThreshold, (uint16(1 + _random(4))));
        (bool success,) = _try(stranger, address(registry), data);
        vm.assertFalse(success, "a stranger set the threshold");
        threshold = 1 + _random(4);
        _must(address(this), address(registry), abi.encodeCall(registry.setThreshold, (uint16(threshold))));
        _count("set threshold");
    }

    function withdrawTreasury(uint256 seed) external {
        _seed(seed);
        uint96 amount = _amount(treasury + 1);
        bytes memory data = abi.encodeCall(payment.withdrawTreasury, (timelock, amount));
        (bool success,) = _try(stranger, address(payment), data);
        vm.assertFalse(success, "a stranger took from the treasury");
        if (amount > treasury) {
            bytes4 reason = IInferencePayment.InferencePayment__InsufficientFunds.selector;
            return _mustFail(timelock, address(payment), data, reason);
        }
        _must(timelock, address(payment), data);
        treasury -= amount;
        _move(address(payment), timelock, amount);
        _count("withdraw from treasury");
    }

    // --- a hostile token ---

    /// @dev Stops paying somebody, or pays again.
    function blockPayee(uint256 seed) external {
        if (!hostile) return;
        _seed(seed);
        address account = _oneIn(2) ? _anyOf(nodes) : _oneIn(2) ? _anyOf(gateways) : _anyOf(clients);
        // A validator that is not paid can't exit: that is its own loss, and not what this is about.
        for (uint256 i = 0; i < candidates.length; ++i) {
            if (candidates[i] == account) return;
        }
        refused[account] = !refused[account];
        HostileToken(address(token)).setRefused(account, refused[account]);
        _count(refused[account] ? "block a payee" : "unblock a payee");
    }

    /// @dev In the middle of a payment, settles a batch, completes, refunds or begins a request. What moves money is
    /// refused by the guard; what only books is allowed, and has to be booked.
    function strike(uint256 seed) external {
        if (!hostile || paused) return;
        _seed(seed);
        _freshen();
        if (paused || wallet[clients[0]] < 1 ether) return;
        Book storage book = books[0];
        uint256 kind = _random(3);
        if (kind == 0) {
            (bool possible, Draft memory draft) = _draft();
            if (!possible) return;
            _during(book, _settleCall(draft));
            _mustBeGuarded();
            _count("batch struck down");
        } else if (kind == 1) {
            (bool found, Case storage live) = _caseThatIs(true);
            if (!found) return;
            if (_oneIn(2) && block.timestamp <= live.request.expiry) vm.warp(uint256(live.request.expiry) + 1);
            bool over = block.timestamp > live.request.expiry;
            _during(book, abi.encodeCall(payment.handleExpiredRequest, (live.request)));
            vm.assertTrue(HostileToken(address(token)).hit() == over, "a refund in the middle of a deposit");
            if (over) {
                _refund(live, Outcome.EXPIRED);
                _count("refund in the middle of a deposit");
            }
        } else {
            (bool found, Case storage live) = _caseThatIs(true);
            if (!found) return;
            uint256 bitmap = _bitmap(live.request.epoch, _without(live.request.gateway, live.request.node));
            if (bitmap == 0) return;
            _during(book, _completeCall(live.request, live.request.amount, bitmap));
            _mustBeGuarded();
            _count("completion struck down");
        }
    }

    // --- inside ---

    function _during(Book storage book, bytes memory data) private {
        HostileToken(address(token)).arm(address(payment), data);
        _must(book.client, address(payment), _depositCall(book, 1 ether));
        vm.assertTrue(HostileToken(address(token)).fired(), "the token did not strike");
        book.deposited += 1 ether;
        _move(book.client, address(payment), 1 ether);
    }

    function _mustBeGuarded() private view {
        HostileToken evil = HostileToken(address(token));
        vm.assertFalse(evil.hit(), "a re-entering call got past the guard");
        bytes4 reason = ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector;
        vm.assertEq(bytes32(bytes4(evil.result())), bytes32(reason), "refused for another reason");
    }

    /// @dev The token gets a balance, a channel and a stake of its own, and from then on tries every entry in the
    /// middle of every transfer.
    function _arm() private {
        HostileToken evil = HostileToken(address(token));
        token.transfer(address(evil), 100_000 ether);
        evil.act(address(token), abi.encodeCall(token.approve, (address(payment), type(uint256).max)));
        evil.act(address(token), abi.encodeCall(token.approve, (address(registry), type(uint256).max)));
        evil.act(address(payment), abi.encodeCall(payment.depositAccount, (1_000 ether)));
        evil.act(address(payment), abi.encodeCall(payment.deposit, (address(evil), session, gateway, 1_000 ether)));
        _open(address(evil), session, gateway);
        books[books.length - 1].deposited = 1_000 ether;
        free[address(evil)] = 1_000 ether;
        wallet[address(evil)] = 98_000 ether;
        wallet[address(payment)] += 2_000 ether;
        address here = address(payment);
        evil.stand(here, here, abi.encodeCall(payment.deposit, (address(evil), session, gateway, 1)));
        evil.stand(here, here, abi.encodeCall(payment.depositAccount, (1)));
        evil.stand(here, here, abi.encodeCall(payment.withdraw, (1)));
        evil.stand(here, here, abi.encodeCall(payment.finalizeWithdrawal, (address(evil), session, gateway)));
        evil.stand(here, here, abi.encodeCall(payment.distributeValidatorPool, ()));
        evil.stand(here, here, abi.encodeCall(payment.withdrawTreasury, (address(evil), 1)));
        here = address(registry);
        evil.stand(here, here, abi.encodeCall(registry.registerValidator, (STAKE)));
        evil.stand(here, here, abi.encodeCall(registry.bond, (BOND)));
        evil.stand(here, here, abi.encodeCall(registry.addStake, (1)));
        evil.stand(here, here, abi.encodeCall(registry.finalizeExit, ()));
        evil.stand(here, here, abi.encodeCall(registry.claimRewards, ()));
        evil.stand(here, here, abi.encodeCall(registry.distribute, (1)));
        evil.stand(here, here, abi.encodeCall(registry.slash, (validatorAt(0), 10_000, 0)));
    }
}
