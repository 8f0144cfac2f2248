// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

/// @title Stake: validators, their epochs and rewards; compute nodes' bonds; slashing and reputation
/// @notice NONE, registerValidator, ACTIVE, requestExit, EXITING, finalizeExit, EXITED (may come back as either).
/// {bond} instead of registerValidator makes a BONDED account: a compute node, which has stake at risk and no vote. It
/// is never active, never a member of an epoch. JAILED is an active validator whose stake fell below its minimum, or a
/// bonded account that was slashed, however much it has left; {addStake} frees either, and makes it what it was before.
/// The active validators become members of an epoch when it begins ({advanceEpoch}); later changes touch later epochs
/// alone.
interface IValidatorRegistry {
    /// @notice What an account is.
    enum State {
        NONE,
        ACTIVE,
        JAILED,
        EXITING,
        EXITED,
        BONDED
    }

    /// @notice Settled at deployment. Times in seconds, stake in base units of the token.
    /// @param minStake least stake of an active validator
    /// @param minBond least stake of a bonded account, not above `minStake`
    /// @param epochLength least time between two epochs
    /// @param snapshotLifetime how long the members of an epoch may sign what is new, counted from its beginning;
    /// somebody has to call {advanceEpoch} at least this often
    /// @param disputeWindow time that is left to bring evidence, after the last moment at which a signature counts
    /// @param unbondingPeriod from {requestExit} to {finalizeExit}; the stake can be slashed until then
    /// @param threshold fewest signatures of a quorum, in the beginning
    struct Config {
        uint96 minStake;
        uint96 minBond;
        uint64 epochLength;
        uint64 snapshotLifetime;
        uint64 disputeWindow;
        uint64 unbondingPeriod;
        uint16 threshold;
    }

    /// @notice A validator registered, again or for the first time.
    event ValidatorRegistered(address indexed validator, uint256 stake);
    /// @notice An account put stake at risk without becoming a validator, again or for the first time.
    event Bonded(address indexed account, uint256 amount);
    /// @notice Stake was added.
    event StakeAdded(address indexed validator, uint256 amount, uint256 stake);
    /// @notice An account leaves; its stake is bound until `exitAt` (Unix time in seconds).
    event ExitRequested(address indexed validator, uint256 exitAt);
    /// @notice An account left and got its stake back.
    event ExitFinalized(address indexed validator, uint256 stake);
    /// @notice A validator's stake fell below the minimum: no member of later epochs until it is filled up. Or a bonded
    /// account was slashed: it should get no work until it adds stake.
    event ValidatorJailed(address indexed validator, uint256 stake);
    /// @notice Stake was added to a jailed account, which has its minimum again: it is what it was before.
    event ValidatorFreed(address indexed validator, uint256 stake);
    /// @notice Stake was taken for misconduct and sent to the treasury.
    event ValidatorSlashed(address indexed validator, uint256 tierBps, uint256 amount, bytes32 indexed evidence);
    /// @notice The reputation changed by `delta`.
    event ReputationChanged(address indexed validator, int64 delta, int64 reputation);
    /// @notice An epoch began; its members may sign what is new until `validUntil` (Unix time in seconds).
    event EpochAdvanced(uint32 indexed epoch, uint256 members, uint256 quorumSize, uint256 validUntil);
    /// @notice The fewest signatures of a quorum changed, for epochs that begin later.
    event ThresholdChanged(uint16 threshold);
    /// @notice Each of the active members of the epoch was credited `share`.
    event RewardsDistributed(uint32 indexed epoch, uint256 share, uint256 validators, uint256 carried);
    /// @notice A validator took its rewards.
    event RewardsClaimed(address indexed validator, uint256 amount);

    /// @notice A setting contradicts another: stakes must be positive, a bond no more than a validator's stake, and
    /// validators must stay bound for as long as their signatures count and can be disputed.
    error ValidatorRegistry__BadConfig(Config config);
    /// @notice An address that must not be zero is.
    error ValidatorRegistry__ZeroAddress();
    /// @notice An amount that must be positive is zero.
    error ValidatorRegistry__ZeroAmount();
    /// @notice The stake is less than an active validator, or a bonded account, has to have.
    error ValidatorRegistry__StakeTooLow(uint256 stake, uint256 minimum);
    /// @notice The account is in a state in which this can't be done.
    error ValidatorRegistry__WrongState(address validator, State state);
    /// @notice No more validators can be active at once.
    error ValidatorRegistry__Full(uint256 maximum);
    /// @notice The stake is bound until `exitAt`.
    error ValidatorRegistry__StillUnbonding(address validator, uint256 exitAt);
    /// @notice The present epoch lasts at least until `endsAt`.
    error ValidatorRegistry__EpochNotOver(uint32 epoch, uint256 endsAt);
    /// @notice Slashing knows the tiers 1000, 3000, 5000 and 10000 basis points.
    error ValidatorRegistry__UnknownTier(uint256 tierBps);
    /// @notice This evidence was used before.
    error ValidatorRegistry__EvidenceUsed(bytes32 evidence);
    /// @notice The threshold must lie between 1 and the most members that an epoch can have.
    error ValidatorRegistry__BadThreshold(uint16 threshold);
    /// @notice There are no rewards to claim.
    error ValidatorRegistry__NoRewards(address validator);
    /// @notice The token moved another amount than it was told to.
    error ValidatorRegistry__TransferMismatch(uint256 received, uint256 expected);

    // --- validators ---

    /// @notice Makes the caller a validator: a member from the next epoch on. The stake is pulled from the caller.
    /// @param stake in base units, at least the minimum
    function registerValidator(uint256 stake) external;

    /// @notice Puts stake of the caller's at risk, as a compute node does that wants to be trusted, and makes it neither
    /// a validator nor a member of any epoch. The stake is pulled from the caller.
    /// @param amount in base units, at least {minBond}
    function bond(uint256 amount) external;

    /// @notice Adds to the caller's stake; frees a jailed account that then has its minimum: a validator is active
    /// again, a bonded account bonded again.
    /// @param amount in base units, pulled from the caller
    function addStake(uint256 amount) external;

    /// @notice Begins the caller's exit: no member of later epochs; the stake stays bound for the unbonding period.
    function requestExit() external;

    /// @notice Pays the caller's stake back after the unbonding period.
    function finalizeExit() external;

    /// @notice Pays the caller's rewards.
    function claimRewards() external;

    // --- epochs ---

    /// @notice Begins the next epoch with the validators that are active now; anybody may call it.
    /// @return epoch that began
    function advanceEpoch() external returns (uint32 epoch);

    /// @notice Splits an amount, pulled from the caller, evenly among those members of the present epoch that are still
    /// active. What can't be split is carried to the next distribution.
    /// @param amount in base units
    function distribute(uint256 amount) external;

    /// @notice The epoch that began last; 0 before the first.
    function currentEpoch() external view returns (uint32);

    /// @notice Unix time in seconds at which the present epoch began.
    function epochStartedAt() external view returns (uint64);

    /// @notice The members of an epoch; a quorum's bitmap counts in this order.
    /// @param epoch must have begun
    function members(uint32 epoch) external view returns (address[] memory);

    /// @notice Unix time in seconds up to which the members of an epoch may sign what is new.
    /// @param epoch must have begun
    function validUntil(uint32 epoch) external view returns (uint64);

    /// @notice Fewest signatures that are a quorum of an epoch, pinned when it began: the threshold, or a majority of
    /// its members where that is more (so that more validators make a quorum no cheaper to buy).
    /// @param epoch must have begun
    function quorumSize(uint32 epoch) external view returns (uint16);

    /// @notice Reverts unless a quorum of an epoch signed a digest (see the library Quorum); does not ask whether
    /// the epoch is recent.
    /// @param digest what was signed
    /// @param epoch whose members signed
    /// @param bitmap bit i stands for member i of the epoch
    /// @param signatures r, s, v (65 bytes) of each, in ascending order of member
    /// @param excluded1 who must not be among the signers
    /// @param excluded2 who must not be among the signers
    /// @return signers those who signed, in ascending order of member
    function verifyQuorum(
        bytes32 digest,
        uint32 epoch,
        uint256 bitmap,
        bytes calldata signatures,
        address excluded1,
        address excluded2
    ) external view returns (address[] memory signers);

    /// @notice Changes the threshold, for epochs that begin later; for the admin.
    /// @param threshold at least 1
    function setThreshold(uint16 threshold) external;

    /// @notice Fewest signatures of a quorum, for epochs that begin from now on.
    function threshold() external view returns (uint16);

    // --- misconduct: for the DisputeManager alone ---

    /// @notice Takes a part of an account's stake, wherever it is bound, and 20 points of reputation. A validator that
    /// is left with less than its minimum is jailed, a bonded account always.
    /// @param validator whose stake it is; it may be on its way out
    /// @param tierBps 1000, 3000, 5000 or 10000 (basis points of the stake)
    /// @param evidence hash of the evidence; each counts once
    /// @return amount in base units that was taken
    function slash(address validator, uint256 tierBps, bytes32 evidence) external returns (uint256 amount);

    /// @notice Changes a validator's reputation.
    /// @param validator must have registered once
    /// @param delta points, either way
    function adjustReputation(address validator, int64 delta) external;

    // --- views ---

    /// @notice All there is about an account, be it a validator or bonded.
    /// @param validator its address
    /// @return state of the account
    /// @return stake in base units
    /// @return exitAt Unix time in seconds at which the stake can be taken out; 0 unless it is on its way out
    /// @return reputation points, 0 in the beginning
    /// @return rewards in base units, not claimed yet
    function validators(address validator)
        external
        view
        returns (State state, uint96 stake, uint64 exitAt, int64 reputation, uint96 rewards);

    /// @notice An account's stake in base units.
    /// @param validator its address
    function stakeOf(address validator) external view returns (uint96);

    /// @notice Whether an account's stake is a bond, not a validator's: tells jailed and leaving ones apart.
    /// @param account its address
    function isBond(address account) external view returns (bool);

    /// @notice The validators that are active now: the members of the next epoch.
    function activeValidators() external view returns (address[] memory);

    /// @notice Rewards that could not be split yet, in base units.
    function carriedRewards() external view returns (uint96);

    /// @notice Whether evidence was used.
    /// @param evidence its hash
    function evidenceUsed(bytes32 evidence) external view returns (bool);

    /// @notice The token that is staked.
    function token() external view returns (IERC20);

    /// @notice Where slashed stake goes.
    function treasury() external view returns (address);

    /// @notice Least stake of an active validator, in base units.
    function minStake() external view returns (uint96);

    /// @notice Least stake of a bonded account, in base units.
    function minBond() external view returns (uint96);

    /// @notice Least time between two epochs, in seconds.
    function epochLength() external view returns (uint64);

    /// @notice How long the members of an epoch may sign what is new, in seconds.
    function snapshotLifetime() external view returns (uint64);

    /// @notice Time that is left to bring evidence, in seconds.
    function disputeWindow() external view returns (uint64);

    /// @notice Time from {requestExit} to {finalizeExit}, in seconds.
    function unbondingPeriod() external view returns (uint64);
}
