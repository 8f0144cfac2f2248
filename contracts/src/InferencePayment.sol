// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {Deposits} from "./Deposits.sol";
import {IInferencePayment} from "./interfaces/IInferencePayment.sol";
import {INCNToken} from "./interfaces/INCNToken.sol";
import {IValidatorRegistry} from "./interfaces/IValidatorRegistry.sol";
import {Channels} from "./libraries/Channels.sol";
import {Quorum} from "./libraries/Quorum.sol";

/// @title Payments for inference: channels settled in batches, and escrow for single requests
contract InferencePayment is Deposits {
    using SafeCast for uint256;

    struct BatchState {
        uint64 nonce; // of the last batch
        uint192 settled; // bit i: a batch with nonce (last - i) was settled
    }

    /// @notice Most requests of one client that can be in escrow at once.
    uint256 public constant MAX_REQUESTS = 16;

    /// @dev Batches of a gateway whose commitments are kept: as many as {BatchState} has bits.
    uint256 private constant MAX_BATCHES = 192;

    /// @dev Marks a place in a client's ring whose request was completed. Writing over it costs the next request a
    /// quarter of what a fresh slot does. A refund clears the place instead: its caller is paid for that in gas.
    bytes32 private constant COMPLETED = bytes32(uint256(1));

    mapping(address gateway => BatchState) private _batchStates;
    mapping(address gateway => bytes32[MAX_BATCHES]) private _batchRings;
    mapping(address client => bytes32[MAX_REQUESTS]) private _requestRings;

    /// @param token_ of all payments; its transfers move exactly the amount
    /// @param registry_ whose epochs decide
    /// @param admin the timelock
    /// @param guardian may pause
    /// @param config the settings
    constructor(INCNToken token_, IValidatorRegistry registry_, address admin, address guardian, Config memory config)
        Deposits(token_, registry_, admin, guardian, config)
    {}

    // --- batches ---

    /// @inheritdoc IInferencePayment
    function settleBatch(
        Batch calldata batch,
        Claim[] calldata claims,
        Credit[] calldata credits,
        uint256 bitmap,
        bytes calldata signatures
    ) external nonReentrant {
        if (claims.length == 0) revert InferencePayment__EmptyBatch(batch.gateway, batch.nonce);
        bytes32 claimsHash = hashClaims(claims);
        if (claimsHash != batch.claimsHash) {
            revert InferencePayment__ClaimsMismatch(batch.claimsHash, claimsHash);
        }
        bytes32 creditsHash = hashCredits(credits);
        if (creditsHash != batch.creditsHash) {
            revert InferencePayment__CreditsMismatch(batch.creditsHash, creditsHash);
        }
        bytes32 digest = hashBatch(batch);
        _recordBatch(batch.gateway, batch.nonce, digest);
        address[] memory signers =
            Quorum.checkFresh(address(registry), digest, batch.epoch, bitmap, signatures, batch.gateway, batch.gateway);
        uint256 total = Channels.draw(_domainSeparatorV4(), batch.gateway, claims);
        uint256 compute = _sumCredits(credits, signers, total, batch.count);
        uint96 gatewayShare = (total / 10).toUint96();
        uint96 pool = (total / 20).toUint96();
        globals.validatorPool += pool;
        globals.treasury += (total - compute - gatewayShare - pool).toUint96();
        emit BatchSettled(batch.gateway, batch.nonce, total, batch.receiptsRoot, batch.daHash, batch.count);
        _payAll(credits);
        _pay(batch.gateway, gatewayShare);
    }

    /// @inheritdoc IInferencePayment
    function batchNonce(address gateway) external view returns (uint64) {
        return _batchStates[gateway].nonce;
    }

    /// @inheritdoc IInferencePayment
    function batchCommitment(address gateway, uint64 nonce) external view returns (bytes32) {
        BatchState memory state = _batchStates[gateway];
        if (nonce > state.nonce || (state.settled >> (state.nonce - nonce)) & 1 == 0) return 0;
        return _batchRings[gateway][nonce % MAX_BATCHES];
    }

    // --- escrow ---

    /// @inheritdoc IInferencePayment
    function initiateInferenceRequest(Request calldata request, uint256 bitmap, bytes calldata signatures)
        external
        whenNotPaused
        returns (bytes32 id)
    {
        (address client, uint64 nonce, address gateway, address node, uint96 amount, uint32 epoch, uint64 expiry) =
            _terms(request);
        if (msg.sender != client) revert InferencePayment__NotClient(msg.sender, client);
        if (amount == 0) revert InferencePayment__ZeroAmount();
        uint256 latest = block.timestamp + MAX_REQUEST_TIME;
        if (expiry <= block.timestamp || expiry > latest) revert InferencePayment__BadExpiry(expiry, latest);
        _reserve(nonce, amount);
        bytes32 commitment = hashRequest(request);
        if (uint256(_replace(client, nonce, commitment)) > uint256(COMPLETED)) {
            revert InferencePayment__TooManyRequests(client, MAX_REQUESTS);
        }
        id = requestId(client, nonce);
        Quorum.checkFresh(address(registry), hashPreprocess(id, commitment), epoch, bitmap, signatures, gateway, node);
        emit RequestInitiated(id, client, gateway, amount, expiry);
    }

    /// @inheritdoc IInferencePayment
    function completeInferenceRequest(
        Request calldata request,
        bytes32 outputHash,
        uint96 fee,
        uint256 bitmap,
        bytes calldata signatures
    ) external nonReentrant {
        (address client, uint64 nonce, address gateway, address node, uint96 amount, uint32 epoch, uint64 expiry) =
            _terms(request);
        bytes32 id = _endRequest(request, client, nonce, COMPLETED);
        if (block.timestamp > expiry) revert InferencePayment__Expired(id, expiry);
        if (fee > amount) revert InferencePayment__FeeTooHigh(fee, amount);
        Quorum.checkPinned(
            address(registry), hashCompletion(id, outputHash, fee), epoch, bitmap, signatures, gateway, node
        );
        if (fee != amount) _accounts[client].free += amount - fee;
        uint256 nodeShare;
        unchecked {
            nodeShare = (uint256(fee) * 80) / 100;
        }
        _creditShares(gateway, fee, nodeShare);
        emit RequestCompleted(id, fee, outputHash);
        // forge-lint: disable-next-line(unsafe-typecast)
        _pay(node, uint96(nodeShare));
    }

    /// @inheritdoc IInferencePayment
    function markRequestFailed(Request calldata request, uint256 bitmap, bytes calldata signatures) external {
        (address client, uint64 nonce, address gateway, address node, uint96 amount, uint32 epoch,) = _terms(request);
        bytes32 id = _endRequest(request, client, nonce, 0);
        Quorum.checkPinned(address(registry), hashFailure(id), epoch, bitmap, signatures, gateway, node);
        _accounts[client].free += amount;
        emit RequestRefunded(id, amount, true);
    }

    /// @inheritdoc IInferencePayment
    function handleExpiredRequest(Request calldata request) external {
        (address client, uint64 nonce,,, uint96 amount,, uint64 expiry) = _terms(request);
        bytes32 id = _endRequest(request, client, nonce, 0);
        if (block.timestamp <= expiry) revert InferencePayment__NotExpired(id, expiry);
        _accounts[client].free += amount;
        emit RequestRefunded(id, amount, false);
    }

    /// @inheritdoc IInferencePayment
    function requestId(address client, uint64 nonce) public view returns (bytes32 id) {
        assembly ("memory-safe") {
            let data := mload(0x40)
            mstore(data, address())
            mstore(add(data, 32), chainid())
            mstore(add(data, 64), shr(96, shl(96, client)))
            mstore(add(data, 96), and(nonce, 0xffffffffffffffff))
            id := keccak256(data, 128)
        }
    }

    /// @inheritdoc IInferencePayment
    function requests(address client, uint64 nonce) external view returns (bytes32) {
        // A client's nonces have no gaps, so that a place holds the last nonce below `requestNonce` that falls on it.
        uint64 next = _accounts[client].requestNonce;
        if (nonce >= next || next - nonce > MAX_REQUESTS) return 0;
        bytes32 commitment = _requestRings[client][nonce % MAX_REQUESTS];
        return commitment == COMPLETED ? bytes32(0) : commitment;
    }

    // --- inside ---

    function _recordBatch(address gateway, uint64 nonce, bytes32 digest) private {
        BatchState memory state = _batchStates[gateway];
        if (nonce <= state.nonce) revert InferencePayment__BatchNonceUsed(gateway, nonce, state.nonce);
        _batchStates[gateway] = BatchState(nonce, (state.settled << (nonce - state.nonce)) | 1);
        _batchRings[gateway][nonce % MAX_BATCHES] = digest;
    }

    /// @dev Checks the credits against the batch's total; returns their sum.
    function _sumCredits(Credit[] calldata credits, address[] memory signers, uint256 total, uint256 count)
        private
        pure
        returns (uint256 sum)
    {
        // One bit for each signer's low byte: almost every payee is told from all signers at once.
        uint256 marks = 0;
        for (uint256 i = 0; i < signers.length; ++i) {
            // forge-lint: disable-next-line(incorrect-shift)
            marks |= 1 << (uint160(signers[i]) & 0xff);
        }
        for (uint256 i = 0; i < credits.length; ++i) {
            Credit calldata credit = credits[i];
            if ((marks >> (uint160(credit.payee) & 0xff)) & 1 != 0) {
                for (uint256 j = 0; j < signers.length; ++j) {
                    if (signers[j] == credit.payee) revert Quorum.Quorum__SignerExcluded(credit.payee);
                }
            }
            unchecked {
                sum += credit.amount; // below 2^96 each
            }
        }
        uint256 most = (total * 80) / 100;
        uint256 least = most > count ? most - count : 0;
        if (sum < least || sum > most) revert InferencePayment__BadCredits(sum, least, most);
    }

    /// @dev Pays all credits in one call of the token; where it refuses that, each by itself.
    function _payAll(Credit[] calldata credits) private {
        address target = address(token);
        bytes4 selector = INCNToken.transferBatch.selector;
        bool done;
        assembly ("memory-safe") {
            // The elements are those of transferBatch(Payout[]): payee and amount, a word each.
            let data := mload(0x40)
            let size := mul(credits.length, 64)
            mstore(data, selector)
            mstore(add(data, 4), 32)
            mstore(add(data, 36), credits.length)
            calldatacopy(add(data, 68), credits.offset, size)
            mstore(0, 0)
            done := call(gas(), target, 0, data, add(size, 68), 0, 32)
            done := and(done, eq(mload(0), 1))
        }
        if (done) return;
        for (uint256 i = 0; i < credits.length; ++i) {
            _pay(credits[i].payee, credits[i].amount);
        }
    }

    /// @dev Takes the amount of a request from the caller's account, and counts its nonce up.
    function _reserve(uint64 nonce, uint256 amount) private {
        Account storage account = _accounts[msg.sender];
        // One load and one store of the whole slot: free, requestNonce, networkShare from its lowest bit up.
        uint256 word;
        assembly ("memory-safe") {
            word := sload(account.slot)
        }
        uint64 next = uint64(word >> 96);
        if (nonce != next) revert InferencePayment__WrongRequestNonce(msg.sender, nonce, next);
        uint256 free = uint96(word);
        if (amount > free) revert InferencePayment__InsufficientFunds(msg.sender, free, amount);
        unchecked {
            word += (1 << 96) - amount; // neither can carry: amount <= free, and nobody makes 2^64 requests
        }
        assembly ("memory-safe") {
            sstore(account.slot, word)
        }
    }

    /// @dev Credits a gateway with its share of a fee, and leaves the network's there until it is booked. What rounding
    /// leaves is booked to the treasury at once (nothing, where 20 divides the fee).
    function _creditShares(address gateway, uint256 fee, uint256 nodeShare) private {
        uint256 gatewayShare = fee / 10;
        uint256 dust;
        uint256 word;
        Account storage account = _accounts[gateway];
        assembly ("memory-safe") {
            word := sload(account.slot)
        }
        uint256 free = uint96(word);
        uint256 share = word >> 160;
        unchecked {
            uint256 networks = (fee / 20) * 2;
            dust = fee - nodeShare - gatewayShare - networks; // 80% + 10% + 10%, each rounded down
            free += gatewayShare; // sums of two below 2^96
            share += networks;
        }
        // Can only be with a token that has more than 2^96 units in circulation.
        if (free > type(uint96).max) revert SafeCast.SafeCastOverflowedUintDowncast(96, free);
        if (share > type(uint96).max) revert SafeCast.SafeCastOverflowedUintDowncast(96, share);
        word = (share << 160) | (word & (uint256(type(uint64).max) << 96)) | free;
        assembly ("memory-safe") {
            sstore(account.slot, word)
        }
        if (dust != 0) globals.treasury += dust.toUint96();
    }

    /// @dev The members of a request but its hash; reverts where one has more bits than its type, as the ABI decoder
    /// does, which would check them one by one.
    function _terms(Request calldata request)
        private
        pure
        returns (
            address client,
            uint64 nonce,
            address gateway,
            address node,
            uint96 amount,
            uint32 epoch,
            uint64 expiry
        )
    {
        assembly ("memory-safe") {
            client := calldataload(request)
            nonce := calldataload(add(request, 32))
            gateway := calldataload(add(request, 64))
            node := calldataload(add(request, 96))
            amount := calldataload(add(request, 128))
            epoch := calldataload(add(request, 160))
            expiry := calldataload(add(request, 192))
            let excess := or(shr(160, or(client, or(gateway, node))), or(shr(64, or(nonce, expiry)), shr(96, amount)))
            if or(excess, shr(32, epoch)) { revert(0, 0) }
        }
    }

    /// @dev Checks that the request is in escrow, and leaves `mark` in its place; returns its id.
    function _endRequest(Request calldata request, address client, uint64 nonce, bytes32 mark)
        private
        returns (bytes32 id)
    {
        id = requestId(client, nonce);
        if (_replace(client, nonce, mark) != hashRequest(request)) revert InferencePayment__NotInEscrow(id);
    }

    /// @dev Writes to the place of a request in its client's ring; returns what was there.
    function _replace(address client, uint64 nonce, bytes32 value) private returns (bytes32 before) {
        bytes32[MAX_REQUESTS] storage ring = _requestRings[client];
        assembly ("memory-safe") {
            let place := add(ring.slot, mod(nonce, MAX_REQUESTS))
            before := sload(place)
            sstore(place, value)
        }
    }
}
