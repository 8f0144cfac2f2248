// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {INCNToken} from "./INCNToken.sol";
import {IValidatorRegistry} from "./IValidatorRegistry.sol";

/// @title Payments for inference: channels settled in batches, and escrow for single requests
/// @notice Amounts are base units of the token, in uint96. Every debit of a channel is capped by a voucher that the
/// client's signer signed; what a debit is for is attested by a quorum of validators. Of what is paid, at most 80% goes
/// to compute nodes, 10% to the gateway, 5% to the validators and the rest to the treasury. Nothing is upgradeable;
/// pausing stops deposits and new requests, never settlement, refunds or withdrawals.
interface IInferencePayment {
    /// @notice What a batch takes from one channel.
    /// @param client whose deposit it is
    /// @param signer who signed the voucher: the client's own key or a session key
    /// @param cumulative most that may ever have been drawn from the channel, by the voucher
    /// @param total what has been drawn from the channel after this batch: spent < total <= min(cumulative, deposited)
    /// @param r of the signature of the voucher
    /// @param vs of the signature of the voucher (EIP-2098: the parity of v in the top bit of s)
    struct Claim {
        address client;
        address signer;
        uint96 cumulative;
        uint96 total;
        bytes32 r;
        bytes32 vs;
    }

    /// @notice What a batch pays to one compute node.
    /// @param payee the node
    /// @param amount together at most floor(80% of the batch), and less by at most one unit for each receipt
    struct Credit {
        address payee;
        uint96 amount;
    }

    /// @notice The head of a batch: what a quorum signs (EIP-712 `Batch`).
    /// @param gateway whose channels it draws on
    /// @param nonce higher than that of the gateway's last batch; gaps are allowed
    /// @param epoch whose members sign; it must be recent
    /// @param count number of receipts
    /// @param receiptsRoot Merkle root of the receipts' leaves (pairs sorted; a leaf is hashed twice)
    /// @param daHash SHA-256 of the receipts as published
    /// @param claimsHash {hashClaims} of the claims
    /// @param creditsHash {hashCredits} of the credits
    struct Batch {
        address gateway;
        uint64 nonce;
        uint32 epoch;
        uint32 count;
        bytes32 receiptsRoot;
        bytes32 daHash;
        bytes32 claimsHash;
        bytes32 creditsHash;
    }

    /// @notice The terms of a request that is paid by escrow.
    /// @param client who pays
    /// @param nonce the client's `requestNonce` (see {accounts})
    /// @param gateway who gets 10% of the fee
    /// @param node who gets 80% of the fee
    /// @param amount most that the request may cost; held until it ends
    /// @param epoch whose members decide, however many epochs begin until then
    /// @param expiry Unix time in seconds after which anybody may have it refunded
    /// @param requestHash of the request off chain
    struct Request {
        address client;
        uint64 nonce;
        address gateway;
        address node;
        uint96 amount;
        uint32 epoch;
        uint64 expiry;
        bytes32 requestHash;
    }

    /// @notice Settled at deployment. Times in seconds.
    /// @param withdrawalDelay from {requestWithdrawal} until {finalizeWithdrawal} is possible
    /// @param withdrawalWindow how long {finalizeWithdrawal} is then possible; afterwards the exit has lapsed
    /// @param maxRequestTime longest time until a request expires
    struct Config {
        uint64 withdrawalDelay;
        uint64 withdrawalWindow;
        uint64 maxRequestTime;
    }

    /// @notice A channel got money.
    event Deposited(
        bytes32 indexed channelId,
        address indexed client,
        address indexed gateway,
        address signer,
        uint256 amount,
        uint256 deposited
    );
    /// @notice A client wants the rest of a channel back, at `unlockAt` (Unix time in seconds) at the earliest.
    event WithdrawalRequested(bytes32 indexed channelId, address indexed client, uint256 unlockAt);
    /// @notice A client keeps a channel open.
    event WithdrawalCancelled(bytes32 indexed channelId, address indexed client);
    /// @notice The rest of a channel went back to its client.
    event WithdrawalFinalized(bytes32 indexed channelId, address indexed client, uint256 amount);
    /// @notice An account got money for requests.
    event AccountDeposited(address indexed account, uint256 amount);
    /// @notice An account was credited, since the token refused a direct payment.
    event AccountCredited(address indexed account, uint256 amount);
    /// @notice Money left an account.
    event AccountWithdrawn(address indexed account, uint256 amount);
    /// @notice A batch was settled and paid out.
    event BatchSettled(
        address indexed gateway, uint64 indexed nonce, uint256 total, bytes32 receiptsRoot, bytes32 daHash, uint32 count
    );
    /// @notice A request is in escrow.
    event RequestInitiated(
        bytes32 indexed id, address indexed client, address indexed gateway, uint96 amount, uint64 expiry
    );
    /// @notice A request was done and paid for; what was not used returned to the client's account.
    event RequestCompleted(bytes32 indexed id, uint96 fee, bytes32 outputHash);
    /// @notice A request was refunded: a quorum said that it failed, or else it expired.
    event RequestRefunded(bytes32 indexed id, uint96 amount, bool failed);
    /// @notice Deposits and new requests are refused from now on.
    event Paused(address indexed by);
    /// @notice Deposits and new requests are accepted again.
    event Unpaused(address indexed by);
    /// @notice What a gateway's requests in escrow owed to the network was booked: so much to each of the treasury and
    /// the validators' pool.
    event NetworkShareBooked(address indexed gateway, uint256 each);
    /// @notice Money left the treasury.
    event TreasuryWithdrawn(address indexed to, uint256 amount);
    /// @notice The validators' pool went to the registry, to be split there.
    event ValidatorPoolDistributed(uint256 amount);

    /// @notice A setting contradicts another; validators must be bound longer than their signatures count.
    error InferencePayment__BadConfig(Config config);
    /// @notice An address that must not be zero is.
    error InferencePayment__ZeroAddress();
    /// @notice An amount that must be positive is zero.
    error InferencePayment__ZeroAmount();
    /// @notice Deposits and new requests are paused.
    error InferencePayment__Paused();
    /// @notice The token moved another amount than it was told to.
    error InferencePayment__TransferMismatch(uint256 received, uint256 expected);
    /// @notice There is nothing in the channel, or nothing of it left.
    error InferencePayment__ChannelEmpty(bytes32 channelId);
    /// @notice The channel's exit runs already.
    error InferencePayment__AlreadyExiting(bytes32 channelId, uint256 unlockAt);
    /// @notice The channel's exit was not requested, or has lapsed.
    error InferencePayment__NotExiting(bytes32 channelId);
    /// @notice The channel's exit can be finalized at `unlockAt` at the earliest.
    error InferencePayment__StillLocked(bytes32 channelId, uint256 unlockAt);
    /// @notice The account has less than that.
    error InferencePayment__InsufficientFunds(address account, uint256 available, uint256 wanted);
    /// @notice A batch with this nonce or a higher one was settled.
    error InferencePayment__BatchNonceUsed(address gateway, uint64 nonce, uint64 last);
    /// @notice A batch without claims.
    error InferencePayment__EmptyBatch(address gateway, uint64 nonce);
    /// @notice The claims are not those that the quorum signed.
    error InferencePayment__ClaimsMismatch(bytes32 signed, bytes32 given);
    /// @notice The credits are not those that the quorum signed.
    error InferencePayment__CreditsMismatch(bytes32 signed, bytes32 given);
    /// @notice The voucher of a claim is not signed by its signer. Leave the claim out, and have the rest signed.
    error InferencePayment__BadVoucher(uint256 index, bytes32 channelId, address signer);
    /// @notice A claim's total lies outside spent < total <= most. Leave the claim out, and have the rest signed.
    error InferencePayment__BadClaim(uint256 index, bytes32 channelId, uint256 total, uint256 spent, uint256 most);
    /// @notice The credits' sum lies outside least <= sum <= most.
    error InferencePayment__BadCredits(uint256 sum, uint256 least, uint256 most);
    /// @notice Only the client itself may initiate its request.
    error InferencePayment__NotClient(address caller, address client);
    /// @notice The request does not have the client's next nonce.
    error InferencePayment__WrongRequestNonce(address client, uint64 nonce, uint64 expected);
    /// @notice The expiry lies outside now < expiry <= most.
    error InferencePayment__BadExpiry(uint64 expiry, uint256 most);
    /// @notice So many requests of the client are in escrow that the oldest has to end first.
    error InferencePayment__TooManyRequests(address client, uint256 maximum);
    /// @notice Such a request is not in escrow: it never was, has ended, or has other terms.
    error InferencePayment__NotInEscrow(bytes32 id);
    /// @notice The fee exceeds what was paid into escrow.
    error InferencePayment__FeeTooHigh(uint96 fee, uint96 amount);
    /// @notice The request has expired: it can only be refunded.
    error InferencePayment__Expired(bytes32 id, uint64 expiry);
    /// @notice The request has not expired.
    error InferencePayment__NotExpired(bytes32 id, uint64 expiry);

    // --- channels ---

    /// @notice Adds to a channel, from the caller's allowance. Anybody may pay for a client.
    /// @param client who may withdraw what is left
    /// @param signer whose vouchers draw on the channel
    /// @param gateway whose batches draw on the channel
    /// @param amount to add
    function deposit(address client, address signer, address gateway, uint96 amount) external;

    /// @notice Adds to a client's channel with the client's EIP-3009 `ReceiveWithAuthorization` to this contract, with
    /// nonce keccak256(abi.encode(channelId, salt)): the signature fixes the channel. Anybody may submit it.
    /// @param client who pays
    /// @param signer whose vouchers draw on the channel
    /// @param gateway whose batches draw on the channel
    /// @param amount to add
    /// @param validAfter Unix time in seconds after which the authorization holds
    /// @param validBefore Unix time in seconds before which the authorization holds
    /// @param salt of the nonce
    /// @param signature of the client
    function depositWithAuthorization(
        address client,
        address signer,
        address gateway,
        uint96 amount,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 salt,
        bytes calldata signature
    ) external;

    /// @notice Begins the exit of a channel of the caller's; validators sign no more batches that draw on it once what
    /// was served is settled.
    /// @param signer of the channel
    /// @param gateway of the channel
    function requestWithdrawal(address signer, address gateway) external;

    /// @notice Ends the exit of a channel of the caller's: it stays open.
    /// @param signer of the channel
    /// @param gateway of the channel
    function cancelWithdrawal(address signer, address gateway) external;

    /// @notice Pays what is left in a channel to its client, in the window after the delay. Anybody may call it.
    /// @param client of the channel
    /// @param signer of the channel
    /// @param gateway of the channel
    function finalizeWithdrawal(address client, address signer, address gateway) external;

    /// @notice The id of a channel: keccak256(abi.encode(client, signer, gateway)).
    /// @param client of the channel
    /// @param signer of the channel
    /// @param gateway of the channel
    function channelId(address client, address signer, address gateway) external pure returns (bytes32);

    /// @notice A channel.
    /// @param id from {channelId}; what is told of any other word has no meaning
    /// @return deposited all that was paid in, less what was withdrawn
    /// @return spent all that was drawn; never falls
    /// @return unlockAt Unix time in seconds from which the exit can be finalized; 0: no exit was requested. An exit
    /// that was not finalized within the window has lapsed, though this still tells its time.
    function channels(bytes32 id) external view returns (uint96 deposited, uint96 spent, uint64 unlockAt);

    // --- accounts ---

    /// @notice Adds to the caller's account, from its allowance.
    /// @param amount to add
    function depositAccount(uint96 amount) external;

    /// @notice Pays out of the caller's account.
    /// @param amount to pay
    function withdraw(uint96 amount) external;

    /// @notice An account.
    /// @param account whose
    /// @return free what it has and can withdraw
    /// @return requestNonce of its next request
    function accounts(address account) external view returns (uint96 free, uint64 requestNonce);

    // --- batches ---

    /// @notice Settles a batch: draws on the channels and pays everybody. Anybody may submit it.
    /// @param batch its head, which the quorum signed
    /// @param claims on the channels, one for each
    /// @param credits to compute nodes; neither they nor the gateway may be among the signers
    /// @param bitmap of the members that signed
    /// @param signatures r, s, v (65 bytes) of each, in ascending order of member
    function settleBatch(
        Batch calldata batch,
        Claim[] calldata claims,
        Credit[] calldata credits,
        uint256 bitmap,
        bytes calldata signatures
    ) external;

    /// @notice The nonce of a gateway's last batch; 0 before the first.
    /// @param gateway whose
    function batchNonce(address gateway) external view returns (uint64);

    /// @notice The digest ({hashBatch}) of a settled batch, for the last 192 nonces of a gateway.
    /// @param gateway whose
    /// @param nonce of the batch
    /// @return digest 0: no such batch was settled, or it was longer ago
    function batchCommitment(address gateway, uint64 nonce) external view returns (bytes32 digest);

    // --- escrow ---

    /// @notice Moves the amount of a request from the caller's account into escrow.
    /// @param request its terms; the caller is the client
    /// @param bitmap of the members that signed `Preprocess(id, hashRequest(request))`
    /// @param signatures r, s, v (65 bytes) of each, in ascending order of member
    /// @return id of the request
    function initiateInferenceRequest(Request calldata request, uint256 bitmap, bytes calldata signatures)
        external
        returns (bytes32 id);

    /// @notice Ends a request that was done: pays the node, credits the gateway's account, returns the rest to the
    /// client's account. Anybody may call it.
    /// @param request its terms
    /// @param outputHash of the result
    /// @param fee at most the amount in escrow
    /// @param bitmap of the members that signed `Completion(id, keccak256(abi.encode(outputHash, fee)))`
    /// @param signatures r, s, v (65 bytes) of each, in ascending order of member
    function completeInferenceRequest(
        Request calldata request,
        bytes32 outputHash,
        uint96 fee,
        uint256 bitmap,
        bytes calldata signatures
    ) external;

    /// @notice Ends a request that failed: all returns to the client's account. Anybody may call it.
    /// @param request its terms
    /// @param bitmap of the members that signed `Failure(id)`
    /// @param signatures r, s, v (65 bytes) of each, in ascending order of member
    function markRequestFailed(Request calldata request, uint256 bitmap, bytes calldata signatures) external;

    /// @notice Ends a request that expired: all returns to the client's account. Anybody may call it from then on.
    /// @param request its terms
    function handleExpiredRequest(Request calldata request) external;

    /// @notice The id of a request: keccak256(abi.encode(this contract, chain id, client, nonce)).
    /// @param client who pays
    /// @param nonce the client's `requestNonce`
    function requestId(address client, uint64 nonce) external view returns (bytes32);

    /// @notice What is in escrow under a client's nonce.
    /// @param client who pays
    /// @param nonce the client's `requestNonce` of then
    /// @return commitment {hashRequest} of the terms; 0: nothing (not yet, or it has ended)
    function requests(address client, uint64 nonce) external view returns (bytes32 commitment);

    // --- money of the network ---

    /// @notice Sends the validators' pool to the registry, which splits it. Anybody may call it.
    function distributeValidatorPool() external;

    /// @notice Pays out of the treasury; for the admin.
    /// @param to whom
    /// @param amount to pay
    function withdrawTreasury(address to, uint96 amount) external;

    /// @notice Stops deposits and new requests; for the guardian.
    function pause() external;

    /// @notice Ends the pause; for the admin.
    function unpause() external;

    /// @notice Books what a gateway's completed requests owe to the network, to the treasury and the validators' pool.
    /// Until then it waits at the gateway, so that a request need not pay for the booking. Anybody may call it; the
    /// gateway's {withdraw} does it too.
    /// @param gateway whose requests they were
    function bookNetworkShare(address gateway) external;

    /// @notice What waits at a gateway to be booked: half of it for the treasury, half for the validators' pool.
    /// @param gateway whose requests they were
    function networkShare(address gateway) external view returns (uint96);

    /// @notice What belongs to the network and is booked, and the switch.
    /// @return treasury what the treasury has
    /// @return validatorPool what is to be split among the validators
    /// @return paused whether deposits and new requests are refused
    function globals() external view returns (uint96 treasury, uint96 validatorPool, bool paused);

    /// @notice The token of all payments.
    function token() external view returns (INCNToken);

    /// @notice Whose epochs decide.
    function registry() external view returns (IValidatorRegistry);

    // forge-lint: disable-start(mixed-case-function)

    /// @notice From {requestWithdrawal} until {finalizeWithdrawal} is possible, in seconds.
    function WITHDRAWAL_DELAY() external view returns (uint64);

    /// @notice How long {finalizeWithdrawal} is then possible, in seconds.
    function WITHDRAWAL_WINDOW() external view returns (uint64);

    /// @notice Longest time until a request expires, in seconds.
    function MAX_REQUEST_TIME() external view returns (uint64);

    // forge-lint: disable-end(mixed-case-function)
}
