// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IInferencePayment} from "../../src/interfaces/IInferencePayment.sol";
import {Quorum} from "../../src/libraries/Quorum.sol";
import {Signatures} from "../attacks/Signatures.sol";
import {ChannelActions} from "./ChannelActions.sol";

/// @title What is settled, and what must not be
abstract contract BatchActions is ChannelActions {
    /// @dev A batch that can be settled, and the channels behind its claims.
    struct Draft {
        IInferencePayment.Batch batch;
        IInferencePayment.Claim[] claims;
        IInferencePayment.Credit[] credits;
        uint256 bitmap;
        uint256 total;
        uint256 compute;
        uint256[] channels;
    }

    enum Flaw {
        FOREIGN_VOUCHER,
        ABOVE_VOUCHER,
        ABOVE_DEPOSIT,
        NOTHING_NEW,
        CREDITS_TOO_HIGH,
        CREDITS_TOO_LOW,
        OTHER_CLAIMS,
        OTHER_CREDITS,
        OLD_NONCE,
        TOO_FEW,
        STRANGER,
        TWICE,
        GATEWAY_SIGNS,
        PAYEE_SIGNS,
        STALE_EPOCH,
        HIGH_S,
        OTHER_CHAIN,
        OTHER_DEPLOYMENT
    }

    /// @dev Not block.chainid, which the optimizer may read again after it was changed.
    uint256 private constant CHAIN = 31_337;

    function settleBatch(uint256 seed) external {
        _seed(seed);
        (bool possible, Draft memory draft) = _draft();
        if (!possible) return;
        bytes memory data = _settleCall(draft);
        _must(_anyOf(people), address(payment), data);
        _book(draft);
        _mustFail(stranger, address(payment), data, IInferencePayment.InferencePayment__BatchNonceUsed.selector);
        _count("settle batch");
    }

    /// @dev Tells one of the ways in which a batch can be wrong, and that it is refused for it.
    function settleFlawed(uint256 seed) external {
        _seed(seed);
        Flaw flaw = Flaw(_random(uint256(type(Flaw).max) + 1));
        (bool possible, Draft memory draft) = _draft();
        if (!possible) return;
        if (_claimFlaw(flaw, draft) || _creditFlaw(flaw, draft) || _signatureFlaw(flaw, draft) || _replay(flaw, draft))
        {
            _count("flawed batch refused");
        }
    }

    // --- inside ---

    /// @dev A batch over up to four channels of a gateway.
    function _draft() internal returns (bool, Draft memory draft) {
        _freshen();
        address to = _anyOf(gateways);
        draft.channels = _openChannels(to, 1 + _random(4));
        uint256 size = draft.channels.length;
        if (size == 0) return (false, draft);
        draft.claims = new IInferencePayment.Claim[](size);
        for (uint256 i = 0; i < size; ++i) {
            Book storage book = books[draft.channels[i]];
            uint96 total = uint96(book.spent + _amount(book.deposited - book.spent));
            // The voucher may say more than is used, and even more than is there.
            uint96 cumulative = total + uint96(_random(3) * 1 ether);
            draft.claims[i] = claimOf(book.client, keyOf[book.signer], to, cumulative, total);
            draft.total += total - book.spent;
        }
        uint32 receipts = uint32(1 + _random(40));
        draft.credits = _credits(draft, receipts);
        draft.batch = batchOf(to, lastNonce[to] + 1 + uint64(_random(3)), receipts, draft.claims, draft.credits);
        draft.bitmap = _bitmap(epoch, _interested(draft));
        return (draft.bitmap != 0, draft);
    }

    /// @dev Channels of a gateway that have something left.
    function _openChannels(address to, uint256 most) private returns (uint256[] memory found) {
        found = new uint256[](most);
        uint256 start = _random(books.length);
        uint256 size = 0;
        for (uint256 i = 0; i < books.length && size < most; ++i) {
            uint256 index = (start + i) % books.length;
            Book storage book = books[index];
            if (book.gateway == to && book.deposited > book.spent) found[size++] = index;
        }
        assembly ("memory-safe") {
            mstore(found, size)
        }
    }

    /// @dev Up to 80% for one to three nodes, short by at most one unit for each receipt.
    function _credits(Draft memory draft, uint256 receipts)
        private
        returns (IInferencePayment.Credit[] memory credits)
    {
        uint256 most = (draft.total * 80) / 100;
        draft.compute = most - _random((most < receipts ? most : receipts) + 1);
        credits = new IInferencePayment.Credit[](1 + _random(nodes.length));
        uint256 rest = draft.compute;
        for (uint256 i = 0; i < credits.length; ++i) {
            uint256 part = i + 1 == credits.length ? rest : _random(rest + 1);
            credits[i] = IInferencePayment.Credit(nodes[i], uint96(part));
            rest -= part;
        }
    }

    /// @dev Who may not sign a batch.
    function _interested(Draft memory draft) private pure returns (address[] memory accounts) {
        accounts = new address[](draft.credits.length + 1);
        accounts[0] = draft.batch.gateway;
        for (uint256 i = 0; i < draft.credits.length; ++i) {
            accounts[i + 1] = draft.credits[i].payee;
        }
    }

    function _settleCall(Draft memory draft) internal view returns (bytes memory) {
        bytes memory signatures = _signAs(draft.batch.epoch, draft.bitmap, payment.hashBatch(draft.batch));
        return _settleCall(draft, draft.bitmap, signatures);
    }

    function _settleCall(Draft memory draft, uint256 bitmap, bytes memory signatures)
        private
        view
        returns (bytes memory)
    {
        return abi.encodeCall(payment.settleBatch, (draft.batch, draft.claims, draft.credits, bitmap, signatures));
    }

    function _book(Draft memory draft) private {
        for (uint256 i = 0; i < draft.channels.length; ++i) {
            books[draft.channels[i]].spent = draft.claims[i].total;
        }
        for (uint256 i = 0; i < draft.credits.length; ++i) {
            if (draft.credits[i].amount != 0) _payOut(draft.credits[i].payee, draft.credits[i].amount);
        }
        uint256 gatewayShare = draft.total / 10;
        uint256 poolShare = draft.total / 20;
        uint256 rest = draft.total - draft.compute - gatewayShare - poolShare;
        if (gatewayShare != 0) _payOut(draft.batch.gateway, gatewayShare);
        pool += poolShare;
        treasury += rest;
        gatewaysTotal += gatewayShare;
        poolTotal += poolShare;
        treasuryTotal += rest;
        lastNonce[draft.batch.gateway] = draft.batch.nonce;
        settled[draft.batch.gateway][draft.batch.nonce] = payment.hashBatch(draft.batch);
        batchesTotal += draft.total;
        batchesCompute += draft.compute;
        batchesReceipts += draft.batch.count;
        ++batchesSettled;
    }

    /// @dev Has the quorum sign what the draft has become, and sees it refused.
    function _refused(Draft memory draft, bytes4 reason) private returns (bool) {
        draft.batch.claimsHash = keccak256(abi.encode(draft.claims));
        draft.batch.creditsHash = keccak256(abi.encode(draft.credits));
        _mustFail(stranger, address(payment), _settleCall(draft), reason);
        return true;
    }

    function _claimFlaw(Flaw flaw, Draft memory draft) private returns (bool) {
        uint256 i = _random(draft.claims.length);
        Book storage book = books[draft.channels[i]];
        IInferencePayment.Claim memory claim = draft.claims[i];
        if (flaw == Flaw.FOREIGN_VOUCHER) {
            uint256 key = keyOf[stranger] + 7;
            draft.claims[i] = claimOf(book.client, key, book.gateway, claim.cumulative, claim.total);
            draft.claims[i].signer = book.signer;
            return _refused(draft, IInferencePayment.InferencePayment__BadVoucher.selector);
        }
        if (flaw == Flaw.ABOVE_VOUCHER) {
            uint96 less = claim.total - 1;
            draft.claims[i] = claimOf(book.client, keyOf[book.signer], book.gateway, less, claim.total);
            return _refused(draft, IInferencePayment.InferencePayment__BadClaim.selector);
        }
        if (flaw == Flaw.ABOVE_DEPOSIT) {
            uint96 more = uint96(book.deposited + 1);
            draft.claims[i] = claimOf(book.client, keyOf[book.signer], book.gateway, more, more);
            return _refused(draft, IInferencePayment.InferencePayment__BadClaim.selector);
        }
        if (flaw == Flaw.NOTHING_NEW) {
            claim.total = uint96(book.spent);
            return _refused(draft, IInferencePayment.InferencePayment__BadClaim.selector);
        }
        return false;
    }

    function _creditFlaw(Flaw flaw, Draft memory draft) private returns (bool) {
        uint256 most = (draft.total * 80) / 100;
        if (flaw == Flaw.CREDITS_TOO_HIGH) {
            draft.credits[0].amount += uint96(most - draft.compute + 1);
            return _refused(draft, IInferencePayment.InferencePayment__BadCredits.selector);
        }
        if (flaw == Flaw.CREDITS_TOO_LOW && most > draft.batch.count) {
            IInferencePayment.Credit[] memory credits = new IInferencePayment.Credit[](1);
            credits[0] = IInferencePayment.Credit(draft.credits[0].payee, uint96(most - draft.batch.count - 1));
            draft.credits = credits;
            return _refused(draft, IInferencePayment.InferencePayment__BadCredits.selector);
        }
        if (flaw == Flaw.OTHER_CLAIMS || flaw == Flaw.OTHER_CREDITS) {
            bytes memory signatures = _signAs(epoch, draft.bitmap, payment.hashBatch(draft.batch));
            bytes4 reason = IInferencePayment.InferencePayment__ClaimsMismatch.selector;
            if (flaw == Flaw.OTHER_CLAIMS) {
                ++draft.claims[0].total;
            } else {
                draft.credits[0].payee = stranger;
                reason = IInferencePayment.InferencePayment__CreditsMismatch.selector;
            }
            _mustFail(stranger, address(payment), _settleCall(draft, draft.bitmap, signatures), reason);
            return true;
        }
        if (flaw == Flaw.OLD_NONCE) {
            draft.batch.nonce = uint64(_random(lastNonce[draft.batch.gateway] + 1));
            return _refused(draft, IInferencePayment.InferencePayment__BatchNonceUsed.selector);
        }
        return false;
    }

    function _signatureFlaw(Flaw flaw, Draft memory draft) private returns (bool) {
        bytes32 digest = payment.hashBatch(draft.batch);
        if (flaw == Flaw.STALE_EPOCH) {
            uint32 old = 1 + uint32(_random(epoch));
            if (block.timestamp <= validUntil[old]) return false;
            draft.batch.epoch = old;
            draft.bitmap = _bitmap(old, _interested(draft));
            return _refused(draft, Quorum.Quorum__EpochStale.selector);
        }
        if (flaw == Flaw.GATEWAY_SIGNS || flaw == Flaw.PAYEE_SIGNS) {
            address[] memory interested = _interested(draft);
            uint256 bit = _bitOf(epoch, interested[flaw == Flaw.GATEWAY_SIGNS ? 0 : interested.length - 1]);
            if (bit == 0) return false;
            draft.bitmap |= bit;
            return _refused(draft, Quorum.Quorum__SignerExcluded.selector);
        }
        bytes memory signatures = _signAs(epoch, draft.bitmap, digest);
        uint256 bitmap = draft.bitmap;
        bytes4 reason = Quorum.Quorum__BadSignature.selector;
        if (flaw == Flaw.TOO_FEW) {
            while (signatures.length / 65 >= quorumSize[epoch]) {
                bitmap &= bitmap - 1;
                signatures = _signAs(epoch, bitmap, digest);
            }
            reason = Quorum.Quorum__TooFewSigners.selector;
        } else if (flaw == Flaw.STRANGER) {
            signatures = bytes.concat(_cut(signatures), signatureOf(CLIENT_KEY, digest));
        } else if (flaw == Flaw.TWICE && signatures.length > 65) {
            bytes memory first = _signAs(epoch, bitmap & (~bitmap + 1), digest);
            signatures = bytes.concat(_cut(signatures), first);
        } else if (flaw == Flaw.HIGH_S) {
            signatures = bytes.concat(_cut(signatures), Signatures.mirrored(_last(signatures)));
        } else {
            return false;
        }
        _mustFail(stranger, address(payment), _settleCall(draft, bitmap, signatures), reason);
        return true;
    }

    function _replay(Flaw flaw, Draft memory draft) private returns (bool) {
        bytes memory data = _settleCall(draft);
        if (flaw == Flaw.OTHER_CHAIN) {
            vm.chainId(CHAIN + 1);
            _mustFail(stranger, address(payment), data, Quorum.Quorum__BadSignature.selector);
            vm.chainId(CHAIN);
            return true;
        }
        if (flaw == Flaw.OTHER_DEPLOYMENT) {
            _mustFail(stranger, address(twin), data, Quorum.Quorum__BadSignature.selector);
            // Nor do the vouchers, under a batch that is signed for the other contract.
            bytes memory signatures = _signAs(epoch, draft.bitmap, twin.hashBatch(draft.batch));
            data = _settleCall(draft, draft.bitmap, signatures);
            _mustFail(stranger, address(twin), data, IInferencePayment.InferencePayment__BadVoucher.selector);
            return true;
        }
        return false;
    }

    /// @dev All signatures but the last.
    function _cut(bytes memory signatures) private pure returns (bytes memory cut) {
        cut = new bytes(signatures.length - 65);
        for (uint256 i = 0; i < cut.length; ++i) {
            cut[i] = signatures[i];
        }
    }

    /// @dev The last of several signatures.
    function _last(bytes memory signatures) private pure returns (bytes memory last) {
        last = new bytes(65);
        for (uint256 i = 0; i < 65; ++i) {
            last[i] = signatures[signatures.length - 65 + i];
        }
    }
}
