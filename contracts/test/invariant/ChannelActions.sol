// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";
import {IInferencePayment} from "../../src/interfaces/IInferencePayment.sol";
import {HostileToken} from "../attacks/HostileToken.sol";
import {Signatures} from "../attacks/Signatures.sol";
import {Quorums} from "./Quorums.sol";

/// @title What clients do with channels
abstract contract ChannelActions is Quorums {
    function deposit(uint256 seed) external {
        _seed(seed);
        Book storage book = books[_random(books.length)];
        address payer = _oneIn(3) ? _anyOf(clients) : book.client;
        if (wallet[payer] == 0) return;
        uint96 amount = _amount(wallet[payer] > 1_000 ether ? 1_000 ether : wallet[payer]);
        bytes memory data = _depositCall(book, amount);
        if (paused) {
            _mustFail(payer, address(payment), data, IInferencePayment.InferencePayment__Paused.selector);
            return _count("deposit refused while paused");
        }
        if (_oneIn(8)) {
            bytes4 reason = IInferencePayment.InferencePayment__ZeroAmount.selector;
            _mustFail(payer, address(payment), _depositCall(book, 0), reason);
        }
        uint256 before = token.balanceOf(address(payment));
        _must(payer, address(payment), data);
        vm.assertEq(token.balanceOf(address(payment)) - before, amount, "9: a deposit's balance change");
        book.deposited += amount;
        _move(payer, address(payment), amount);
        _count(payer == book.client ? "deposit" : "top up for another");
    }

    function depositWithAuthorization(uint256 seed) external {
        _seed(seed);
        Book storage book = books[_random(books.length)];
        if (keyOf[book.client] == 0 || wallet[book.client] == 0) return;
        uint96 amount = _amount(wallet[book.client] > 1_000 ether ? 1_000 ether : wallet[book.client]);
        bytes32 salt = keccak256(abi.encode(seed, books.length, block.timestamp, wallet[book.client]));
        bytes memory signature = _authorization(book, amount, salt);
        bytes memory data = _authorizedCall(book, amount, salt, signature);
        if (paused) {
            _mustFail(stranger, address(payment), data, IInferencePayment.InferencePayment__Paused.selector);
            return _count("deposit refused while paused");
        }
        Book storage other = books[_random(books.length)];
        if (keccak256(abi.encode(other.client, other.signer, other.gateway)) != _idOf(book)) {
            bytes memory redirected = abi.encodeCall(
                payment.depositWithAuthorization,
                (book.client, other.signer, other.gateway, amount, 0, type(uint48).max >> 1, salt, signature)
            );
            if (other.client == book.client) {
                _mustFail(stranger, address(payment), redirected, ERC3009.ERC3009InvalidSignature.selector);
            }
        }
        uint256 before = token.balanceOf(address(payment));
        _must(stranger, address(payment), data);
        vm.assertEq(token.balanceOf(address(payment)) - before, amount, "9: a deposit's balance change");
        book.deposited += amount;
        _move(book.client, address(payment), amount);
        _mustFail(stranger, address(payment), data, ERC3009.ERC3009UsedAuthorization.selector);
        _count("deposit with authorization");
    }

    /// @dev A token that keeps a fee can't be deposited at all.
    function depositLess(uint256 seed) external {
        _seed(seed);
        if (!hostile || paused) return;
        Book storage book = books[_random(books.length)];
        HostileToken(address(token)).setFee(1);
        bytes4 reason = IInferencePayment.InferencePayment__TransferMismatch.selector;
        _mustFail(book.client, address(payment), _depositCall(book, 1 ether), reason);
        bytes memory data = abi.encodeCall(payment.depositAccount, (1 ether));
        _mustFail(book.client, address(payment), data, reason);
        HostileToken(address(token)).setFee(0);
        _count("deposit refused that arrives short");
    }

    function donate(uint256 seed) external {
        _seed(seed);
        address giver = _anyOf(clients);
        if (wallet[giver] == 0) return;
        uint96 amount = _amount(wallet[giver] > 10 ether ? 10 ether : wallet[giver]);
        bool toRegistry = _oneIn(4);
        address to = toRegistry ? address(registry) : address(payment);
        _must(giver, address(token), abi.encodeCall(token.transfer, (to, amount)));
        _move(giver, to, amount);
        if (toRegistry) donatedToRegistry += amount;
        else donated += amount;
        _count("donate");
    }

    function requestWithdrawal(uint256 seed) external {
        _seed(seed);
        Book storage book = books[_random(books.length)];
        bytes memory data = abi.encodeCall(payment.requestWithdrawal, (book.signer, book.gateway));
        if (book.deposited == book.spent) {
            bytes4 reason = IInferencePayment.InferencePayment__ChannelEmpty.selector;
            return _mustFail(book.client, address(payment), data, reason);
        }
        if (_isExiting(book)) {
            bytes4 reason = IInferencePayment.InferencePayment__AlreadyExiting.selector;
            return _mustFail(book.client, address(payment), data, reason);
        }
        _must(book.client, address(payment), data);
        book.unlockAt = block.timestamp + payment.WITHDRAWAL_DELAY();
        _count("request withdrawal");
    }

    function cancelWithdrawal(uint256 seed) external {
        _seed(seed);
        Book storage book = _exitingBook();
        bytes memory data = abi.encodeCall(payment.cancelWithdrawal, (book.signer, book.gateway));
        if (!_isExiting(book)) {
            bytes4 reason = IInferencePayment.InferencePayment__NotExiting.selector;
            return _mustFail(book.client, address(payment), data, reason);
        }
        _must(book.client, address(payment), data);
        book.unlockAt = 0;
        _count("cancel withdrawal");
    }

    function finalizeWithdrawal(uint256 seed) external {
        _seed(seed);
        Book storage book = _exitingBook();
        bytes memory data = abi.encodeCall(payment.finalizeWithdrawal, (book.client, book.signer, book.gateway));
        if (_isExiting(book) && block.timestamp < book.unlockAt) {
            bytes4 reason = IInferencePayment.InferencePayment__StillLocked.selector;
            _mustFail(stranger, address(payment), data, reason);
            uint256 kind = _random(4);
            if (kind == 0) return;
            // The first moment, the last one, or just too late.
            if (kind == 1) vm.warp(book.unlockAt);
            else vm.warp(book.unlockAt + payment.WITHDRAWAL_WINDOW() + (kind == 2 ? 0 : 1));
        }
        if (!_isExiting(book)) {
            bytes4 reason = IInferencePayment.InferencePayment__NotExiting.selector;
            _mustFail(stranger, address(payment), data, reason);
            if (book.unlockAt != 0) _count("withdrawal refused after its window");
            return;
        }
        _must(stranger, address(payment), data);
        uint256 rest = book.deposited - book.spent;
        (book.deposited, book.unlockAt) = (book.spent, 0);
        if (rest != 0) _payOut(book.client, rest);
        _count("finalize withdrawal");
    }

    // --- inside ---

    function _idOf(Book storage book) internal view returns (bytes32) {
        return keccak256(abi.encode(book.client, book.signer, book.gateway));
    }

    /// @dev A channel that is exiting, if there is one.
    function _exitingBook() private returns (Book storage) {
        uint256 start = _random(books.length);
        for (uint256 i = 0; i < books.length; ++i) {
            Book storage book = books[(start + i) % books.length];
            if (book.unlockAt != 0) return book;
        }
        return books[start];
    }

    function _depositCall(Book storage book, uint96 amount) internal view returns (bytes memory) {
        return abi.encodeCall(payment.deposit, (book.client, book.signer, book.gateway, amount));
    }

    function _authorizedCall(Book storage book, uint96 amount, bytes32 salt, bytes memory signature)
        private
        view
        returns (bytes memory)
    {
        return abi.encodeCall(
            payment.depositWithAuthorization,
            (book.client, book.signer, book.gateway, amount, 0, type(uint48).max >> 1, salt, signature)
        );
    }

    function _authorization(Book storage book, uint96 amount, bytes32 salt) private view returns (bytes memory) {
        bytes32 nonce = keccak256(abi.encode(_idOf(book), salt));
        uint256 validBefore = type(uint48).max >> 1;
        return signatureOf(
            keyOf[book.client],
            Signatures.receiveDigest(token, book.client, address(payment), amount, validBefore, nonce)
        );
    }
}
