// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IInferencePayment} from "../../src/interfaces/IInferencePayment.sol";
import {Quorum} from "../../src/libraries/Quorum.sol";
import {BatchActions} from "./BatchActions.sol";

/// @title What becomes of requests in escrow
abstract contract EscrowActions is BatchActions {
    function depositAccount(uint256 seed) external {
        _seed(seed);
        address payer = _anyOf(clients);
        if (wallet[payer] == 0) return;
        uint96 amount = _amount(wallet[payer] > 1_000 ether ? 1_000 ether : wallet[payer]);
        bytes memory data = abi.encodeCall(payment.depositAccount, (amount));
        if (paused) {
            _mustFail(payer, address(payment), data, IInferencePayment.InferencePayment__Paused.selector);
            return _count("deposit refused while paused");
        }
        uint256 before = token.balanceOf(address(payment));
        _must(payer, address(payment), data);
        vm.assertEq(token.balanceOf(address(payment)) - before, amount, "9: a deposit's balance change");
        free[payer] += amount;
        _move(payer, address(payment), amount);
        _count("deposit to account");
    }

    function withdraw(uint256 seed) external {
        _seed(seed);
        address owner = _creditedPerson();
        uint96 amount = _amount(free[owner] + 1);
        bytes memory data = abi.encodeCall(payment.withdraw, (amount));
        if (amount > free[owner]) {
            bytes4 reason = IInferencePayment.InferencePayment__InsufficientFunds.selector;
            return _mustFail(owner, address(payment), data, reason);
        }
        if (refused[owner]) return;
        _must(owner, address(payment), data);
        free[owner] -= amount;
        _move(address(payment), owner, amount);
        if (waiting[owner] != 0) {
            _bookShare(owner);
            _count("withdraw and book the network's share");
        }
        _count("withdraw");
    }

    function bookNetworkShare(uint256 seed) external {
        _seed(seed);
        address to = _anyOf(gateways);
        bytes memory data = abi.encodeCall(payment.bookNetworkShare, (to));
        if (waiting[to] == 0) {
            bytes4 reason = IInferencePayment.InferencePayment__ZeroAmount.selector;
            return _mustFail(stranger, address(payment), data, reason);
        }
        _must(stranger, address(payment), data);
        _bookShare(to);
        _count("book the network's share");
    }

    function initiateRequest(uint256 seed) external {
        _seed(seed);
        address payer = _anyOf(clients);
        if (free[payer] == 0) return;
        _freshen();
        IInferencePayment.Request memory request = _request(payer);
        uint256 bitmap = _bitmap(epoch, _without(request.gateway, request.node));
        if (bitmap == 0) return;
        bytes memory data = _initiateCall(request, bitmap);
        if (paused) {
            _mustFail(payer, address(payment), data, IInferencePayment.InferencePayment__Paused.selector);
            return _count("request refused while paused");
        }
        _mustFail(stranger, address(payment), data, IInferencePayment.InferencePayment__NotClient.selector);
        if (_isFull(payer)) {
            bytes4 reason = IInferencePayment.InferencePayment__TooManyRequests.selector;
            return _mustFail(payer, address(payment), data, reason);
        }
        _must(payer, address(payment), data);
        _bookRequest(request);
        _mustFail(payer, address(payment), data, IInferencePayment.InferencePayment__WrongRequestNonce.selector);
        _count("initiate request");
    }

    function completeRequest(uint256 seed) external {
        _seed(seed);
        (bool found, Case storage live) = _caseThatIs(true);
        if (!found) return;
        IInferencePayment.Request memory request = live.request;
        uint256 bitmap = _bitmap(request.epoch, _without(request.gateway, request.node));
        if (bitmap == 0) return;
        if (_oneIn(8)) {
            bytes memory greedy = _completeCall(request, request.amount + 1, bitmap);
            if (block.timestamp <= request.expiry) {
                bytes4 reason = IInferencePayment.InferencePayment__FeeTooHigh.selector;
                _mustFail(stranger, address(payment), greedy, reason);
            }
        }
        uint96 fee = _oneIn(8) ? 0 : _amount(request.amount);
        bytes memory data = _completeCall(request, fee, bitmap);
        if (block.timestamp > request.expiry) {
            _mustFail(stranger, address(payment), data, IInferencePayment.InferencePayment__Expired.selector);
            return _count("completion refused after expiry");
        }
        _must(stranger, address(payment), data);
        live.outcome = Outcome.COMPLETED;
        escrowed -= request.amount;
        free[request.client] += request.amount - fee;
        uint256 compute = (uint256(fee) * 80) / 100;
        feesTotal += fee;
        feesCompute += compute;
        if (compute != 0) _payOut(request.node, compute);
        _shareFee(request.gateway, fee, fee - compute);
        _count("complete request");
    }

    function failRequest(uint256 seed) external {
        _seed(seed);
        (bool found, Case storage live) = _caseThatIs(true);
        if (!found) return;
        uint256 bitmap = _bitmap(live.request.epoch, _without(live.request.gateway, live.request.node));
        if (bitmap == 0) return;
        _must(stranger, address(payment), _failCall(live.request, bitmap));
        _refund(live, Outcome.FAILED);
        _count("fail request");
    }

    function expireRequest(uint256 seed) external {
        _seed(seed);
        (bool found, Case storage live) = _caseThatIs(true);
        if (!found) return;
        bytes memory data = abi.encodeCall(payment.handleExpiredRequest, (live.request));
        if (block.timestamp <= live.request.expiry) {
            _mustFail(stranger, address(payment), data, IInferencePayment.InferencePayment__NotExpired.selector);
            if (_oneIn(2)) return;
            vm.warp(uint256(live.request.expiry) + 1);
        }
        _must(_anyOf(people), address(payment), data);
        _refund(live, Outcome.EXPIRED);
        _count(paused ? "expire request while paused" : "expire request");
    }

    /// @dev A request that has ended ends no second time, in no way, however well that is signed.
    function endAgain(uint256 seed) external {
        _seed(seed);
        (bool found, Case storage ended) = _caseThatIs(false);
        if (!found) return;
        IInferencePayment.Request memory request = ended.request;
        uint256 bitmap = _bitmap(request.epoch, _without(request.gateway, request.node));
        bytes4 reason = IInferencePayment.InferencePayment__NotInEscrow.selector;
        bytes memory data = abi.encodeCall(payment.handleExpiredRequest, (request));
        _mustFail(stranger, address(payment), data, reason);
        if (bitmap == 0) return;
        _mustFail(stranger, address(payment), _failCall(request, bitmap), reason);
        _mustFail(stranger, address(payment), _completeCall(request, request.amount, bitmap), reason);
        _count("second end refused");
    }

    /// @dev What validators signed for another purpose, request, chain or deployment decides nothing.
    function decideFlawed(uint256 seed) external {
        _seed(seed);
        (bool found, Case storage live) = _caseThatIs(true);
        if (!found || block.timestamp > live.request.expiry) return;
        IInferencePayment.Request memory request = live.request;
        uint256 bitmap = _bitmap(request.epoch, _without(request.gateway, request.node));
        if (bitmap == 0) return;
        bytes32 id = payment.requestId(request.client, request.nonce);
        bytes32 digest = payment.hashCompletion(id, "output", request.amount);
        bytes4 reason = Quorum.Quorum__BadSignature.selector;
        uint256 kind = _random(6);
        if (kind == 0) {
            digest = payment.hashFailure(id);
        } else if (kind == 1) {
            digest = payment.hashCompletion(id, "output", request.amount - 1);
        } else if (kind == 2) {
            digest =
                payment.hashCompletion(payment.requestId(request.client, request.nonce + 1), "output", request.amount);
        } else if (kind == 3) {
            digest = twin.hashCompletion(id, "output", request.amount);
        } else if (kind == 4) {
            uint256 bit = _bitOf(request.epoch, _oneIn(2) ? request.gateway : request.node);
            if (bit == 0) return;
            bitmap |= bit;
            reason = Quorum.Quorum__SignerExcluded.selector;
        } else {
            bitmap &= bitmap - 1;
            while (_ones(bitmap) >= quorumSize[request.epoch]) bitmap &= bitmap - 1;
            reason = Quorum.Quorum__TooFewSigners.selector;
        }
        bytes memory signatures = _signAs(request.epoch, bitmap, digest);
        bytes memory data =
            abi.encodeCall(payment.completeInferenceRequest, (request, "output", request.amount, bitmap, signatures));
        _mustFail(stranger, address(payment), data, reason);
        _count("flawed decision refused");
    }

    // --- inside ---

    /// @dev The gateway's share is credited, not paid; twice 5% wait with it, the rest is the treasury's at once.
    function _shareFee(address to, uint256 fee, uint256 rest) private {
        uint256 gatewayShare = fee / 10;
        uint256 each = fee / 20;
        free[to] += gatewayShare;
        waiting[to] += 2 * each;
        treasury += rest - gatewayShare - 2 * each;
        gatewaysTotal += gatewayShare;
        poolTotal += each;
        treasuryTotal += rest - gatewayShare - each;
    }

    function _bookShare(address to) internal {
        pool += waiting[to] / 2;
        treasury += waiting[to] / 2;
        waiting[to] = 0;
    }

    function _request(address payer) private returns (IInferencePayment.Request memory) {
        return IInferencePayment.Request({
            client: payer,
            nonce: nextNonce[payer],
            gateway: _anyOf(gateways),
            node: _anyOf(nodes),
            amount: _amount(free[payer] > 100 ether ? 100 ether : free[payer]),
            epoch: epoch,
            expiry: uint64(block.timestamp + 1 + _random(payment.MAX_REQUEST_TIME())),
            requestHash: keccak256(abi.encode(payer, nextNonce[payer]))
        });
    }

    function _bookRequest(IInferencePayment.Request memory request) private {
        cases.push(Case(request, Outcome.LIVE));
        ++nextNonce[request.client];
        free[request.client] -= request.amount;
        escrowed += request.amount;
    }

    function _refund(Case storage live, Outcome outcome) internal {
        live.outcome = outcome;
        escrowed -= live.request.amount;
        free[live.request.client] += live.request.amount;
    }

    /// @dev Whether the sixteenth request before the client's next one has not ended.
    function _isFull(address payer) private view returns (bool) {
        for (uint256 i = 0; i < cases.length; ++i) {
            IInferencePayment.Request storage request = cases[i].request;
            if (request.client != payer || request.nonce + 16 != nextNonce[payer]) continue;
            return cases[i].outcome == Outcome.LIVE;
        }
        return false;
    }

    function _caseThatIs(bool live) internal returns (bool, Case storage) {
        uint256 start = cases.length == 0 ? 0 : _random(cases.length);
        for (uint256 i = 0; i < cases.length; ++i) {
            Case storage case_ = cases[(start + i) % cases.length];
            if ((case_.outcome == Outcome.LIVE) == live) return (true, case_);
        }
        Case storage none;
        assembly ("memory-safe") {
            none.slot := 0
        }
        return (false, none);
    }

    /// @dev Somebody with a balance, if there is anybody.
    function _creditedPerson() private returns (address) {
        uint256 start = _random(people.length);
        for (uint256 i = 0; i < people.length; ++i) {
            address account = people[(start + i) % people.length];
            if (free[account] != 0) return account;
        }
        return people[start];
    }

    function _ones(uint256 bitmap) private pure returns (uint256 ones) {
        for (; bitmap != 0; bitmap &= bitmap - 1) {
            ++ones;
        }
    }

    function _initiateCall(IInferencePayment.Request memory request, uint256 bitmap)
        private
        view
        returns (bytes memory)
    {
        bytes memory signatures = _signAs(request.epoch, bitmap, preprocessOf(request));
        return abi.encodeCall(payment.initiateInferenceRequest, (request, bitmap, signatures));
    }

    function _completeCall(IInferencePayment.Request memory request, uint96 fee, uint256 bitmap)
        internal
        view
        returns (bytes memory)
    {
        bytes32 id = payment.requestId(request.client, request.nonce);
        bytes memory signatures = _signAs(request.epoch, bitmap, payment.hashCompletion(id, "output", fee));
        return abi.encodeCall(payment.completeInferenceRequest, (request, "output", fee, bitmap, signatures));
    }

    function _failCall(IInferencePayment.Request memory request, uint256 bitmap) private view returns (bytes memory) {
        bytes32 id = payment.requestId(request.client, request.nonce);
        bytes memory signatures = _signAs(request.epoch, bitmap, payment.hashFailure(id));
        return abi.encodeCall(payment.markRequestFailed, (request, bitmap, signatures));
    }
}
