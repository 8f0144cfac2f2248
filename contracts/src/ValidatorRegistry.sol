// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {AccessControl} from "@openzeppelin/contracts/access/AccessControl.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {IValidatorRegistry} from "./interfaces/IValidatorRegistry.sol";
import {EpochSnapshot} from "./libraries/EpochSnapshot.sol";
import {Quorum} from "./libraries/Quorum.sol";

/// @title Stake: validators, their epochs and rewards; compute nodes' bonds; slashing and reputation
contract ValidatorRegistry is AccessControl, ReentrancyGuardTransient, IValidatorRegistry {
    using SafeERC20 for IERC20;
    using SafeCast for uint256;

    struct Validator {
        uint96 stake;
        uint96 rewards;
        uint40 exitAt;
        State state;
        bool isBond;
        int64 reputation;
        uint16 index; // in _active, while active
    }

    /// @notice Who may slash and change reputations: the DisputeManager.
    bytes32 public constant DISPUTES_ROLE = keccak256("DISPUTES_ROLE");

    /// @notice Most validators at once: a quorum's bitmap has 256 bits.
    uint256 public constant MAX_VALIDATORS = 256;

    /// @dev Points of reputation that a slashing costs.
    int64 private constant SLASH_REPUTATION = -20;

    /// @inheritdoc IValidatorRegistry
    IERC20 public immutable token;
    /// @inheritdoc IValidatorRegistry
    address public immutable treasury;
    /// @inheritdoc IValidatorRegistry
    uint96 public immutable minStake;
    /// @inheritdoc IValidatorRegistry
    uint96 public immutable minBond;
    /// @inheritdoc IValidatorRegistry
    uint64 public immutable epochLength;
    /// @inheritdoc IValidatorRegistry
    uint64 public immutable snapshotLifetime;
    /// @inheritdoc IValidatorRegistry
    uint64 public immutable disputeWindow;
    /// @inheritdoc IValidatorRegistry
    uint64 public immutable unbondingPeriod;

    /// @inheritdoc IValidatorRegistry
    uint32 public currentEpoch;
    /// @inheritdoc IValidatorRegistry
    uint64 public epochStartedAt;
    /// @inheritdoc IValidatorRegistry
    uint16 public threshold;
    /// @inheritdoc IValidatorRegistry
    uint96 public carriedRewards;
    /// @inheritdoc IValidatorRegistry
    mapping(bytes32 evidence => bool) public evidenceUsed;

    mapping(address validator => Validator) private _validators;
    address[] private _active;

    /// @param token_ that is staked; its transfers move exactly the amount
    /// @param admin gives and takes {DISPUTES_ROLE}; whoever deploys hands this to the timelock
    /// @param treasury_ gets what is slashed
    /// @param config the settings
    constructor(IERC20 token_, address admin, address treasury_, Config memory config) {
        if (address(token_) == address(0) || admin == address(0) || treasury_ == address(0)) {
            revert ValidatorRegistry__ZeroAddress();
        }
        bool sound = config.minBond > 0 && config.minBond <= config.minStake
            && config.snapshotLifetime >= config.epochLength
            && config.unbondingPeriod >= uint256(config.snapshotLifetime) + config.disputeWindow
            && config.unbondingPeriod <= type(uint32).max;
        if (!sound) revert ValidatorRegistry__BadConfig(config);
        _setThreshold(config.threshold);
        token = token_;
        treasury = treasury_;
        minStake = config.minStake;
        minBond = config.minBond;
        epochLength = config.epochLength;
        snapshotLifetime = config.snapshotLifetime;
        disputeWindow = config.disputeWindow;
        unbondingPeriod = config.unbondingPeriod;
        _grantRole(DEFAULT_ADMIN_ROLE, admin);
    }

    // --- validators ---

    /// @inheritdoc IValidatorRegistry
    function registerValidator(uint256 stake) external nonReentrant {
        Validator storage validator = _enter(stake, minStake);
        _activate(validator, msg.sender);
        emit ValidatorRegistered(msg.sender, stake);
        _pull(stake);
    }

    /// @inheritdoc IValidatorRegistry
    function bond(uint256 amount) external nonReentrant {
        Validator storage validator = _enter(amount, minBond);
        validator.isBond = true;
        validator.state = State.BONDED;
        emit Bonded(msg.sender, amount);
        _pull(amount);
    }

    /// @inheritdoc IValidatorRegistry
    function addStake(uint256 amount) external nonReentrant {
        if (amount == 0) revert ValidatorRegistry__ZeroAmount();
        Validator storage validator = _validators[msg.sender];
        State state = validator.state;
        if (state != State.ACTIVE && state != State.JAILED && state != State.BONDED) {
            revert ValidatorRegistry__WrongState(msg.sender, state);
        }
        uint96 stake = validator.stake + amount.toUint96();
        validator.stake = stake;
        emit StakeAdded(msg.sender, amount, stake);
        if (state == State.JAILED && stake >= (validator.isBond ? minBond : minStake)) {
            if (validator.isBond) validator.state = State.BONDED;
            else _activate(validator, msg.sender);
            emit ValidatorFreed(msg.sender, stake);
        }
        _pull(amount);
    }

    /// @inheritdoc IValidatorRegistry
    function requestExit() external {
        Validator storage validator = _validators[msg.sender];
        State state = validator.state;
        if (state == State.ACTIVE) {
            _deactivate(validator);
        } else if (state != State.JAILED && state != State.BONDED) {
            revert ValidatorRegistry__WrongState(msg.sender, state);
        }
        validator.state = State.EXITING;
        validator.exitAt = (block.timestamp + unbondingPeriod).toUint40();
        emit ExitRequested(msg.sender, validator.exitAt);
    }

    /// @inheritdoc IValidatorRegistry
    function finalizeExit() external nonReentrant {
        Validator storage validator = _validators[msg.sender];
        if (validator.state != State.EXITING) revert ValidatorRegistry__WrongState(msg.sender, validator.state);
        if (block.timestamp < validator.exitAt) {
            revert ValidatorRegistry__StillUnbonding(msg.sender, validator.exitAt);
        }
        uint256 stake = validator.stake;
        validator.stake = 0;
        validator.exitAt = 0;
        validator.isBond = false;
        validator.state = State.EXITED;
        emit ExitFinalized(msg.sender, stake);
        token.safeTransfer(msg.sender, stake);
    }

    /// @inheritdoc IValidatorRegistry
    function claimRewards() external nonReentrant {
        uint256 amount = _validators[msg.sender].rewards;
        if (amount == 0) revert ValidatorRegistry__NoRewards(msg.sender);
        _validators[msg.sender].rewards = 0;
        emit RewardsClaimed(msg.sender, amount);
        token.safeTransfer(msg.sender, amount);
    }

    // --- epochs ---

    /// @inheritdoc IValidatorRegistry
    function advanceEpoch() external returns (uint32 epoch) {
        epoch = currentEpoch;
        uint256 endsAt = uint256(epochStartedAt) + epochLength;
        if (epoch != 0 && block.timestamp < endsAt) revert ValidatorRegistry__EpochNotOver(epoch, endsAt);
        currentEpoch = ++epoch;
        epochStartedAt = block.timestamp.toUint64();
        uint64 until = (block.timestamp + snapshotLifetime).toUint64();
        address[] memory accounts = _active;
        uint256 majority = accounts.length / 2 + 1;
        uint16 size = threshold > majority ? threshold : majority.toUint16();
        emit EpochAdvanced(epoch, accounts.length, size, until);
        EpochSnapshot.write(epoch, until, size, accounts);
    }

    /// @inheritdoc IValidatorRegistry
    function distribute(uint256 amount) external nonReentrant {
        uint32 epoch = currentEpoch;
        uint256 pot = uint256(carriedRewards) + amount;
        address[] memory paid = _stillActive(epoch);
        uint256 share = paid.length == 0 ? 0 : pot / paid.length;
        for (uint256 i = 0; i < paid.length; ++i) {
            _validators[paid[i]].rewards += share.toUint96();
        }
        carriedRewards = (pot - share * paid.length).toUint96();
        emit RewardsDistributed(epoch, share, paid.length, carriedRewards);
        _pull(amount);
    }

    /// @inheritdoc IValidatorRegistry
    function members(uint32 epoch) external view returns (address[] memory) {
        return EpochSnapshot.members(EpochSnapshot.load(address(this), epoch));
    }

    /// @inheritdoc IValidatorRegistry
    function validUntil(uint32 epoch) external view returns (uint64) {
        return EpochSnapshot.load(address(this), epoch).validUntil.toUint64();
    }

    /// @inheritdoc IValidatorRegistry
    function quorumSize(uint32 epoch) external view returns (uint16) {
        return EpochSnapshot.load(address(this), epoch).quorumSize.toUint16();
    }

    /// @inheritdoc IValidatorRegistry
    function verifyQuorum(
        bytes32 digest,
        uint32 epoch,
        uint256 bitmap,
        bytes calldata signatures,
        address excluded1,
        address excluded2
    ) external view returns (address[] memory signers) {
        return Quorum.checkPinned(address(this), digest, epoch, bitmap, signatures, excluded1, excluded2);
    }

    /// @inheritdoc IValidatorRegistry
    function setThreshold(uint16 threshold_) external onlyRole(DEFAULT_ADMIN_ROLE) {
        _setThreshold(threshold_);
    }

    // --- misconduct ---

    /// @inheritdoc IValidatorRegistry
    function slash(address account, uint256 tierBps, bytes32 evidence)
        external
        nonReentrant
        onlyRole(DISPUTES_ROLE)
        returns (uint256 amount)
    {
        if (tierBps != 1_000 && tierBps != 3_000 && tierBps != 5_000 && tierBps != 10_000) {
            revert ValidatorRegistry__UnknownTier(tierBps);
        }
        if (evidenceUsed[evidence]) revert ValidatorRegistry__EvidenceUsed(evidence);
        Validator storage validator = _validators[account];
        if (validator.state == State.NONE) revert ValidatorRegistry__WrongState(account, State.NONE);
        evidenceUsed[evidence] = true;
        uint96 stake = validator.stake;
        amount = (uint256(stake) * tierBps) / 10_000;
        stake -= amount.toUint96();
        validator.stake = stake;
        emit ValidatorSlashed(account, tierBps, amount, evidence);
        bool short = validator.state == State.ACTIVE && stake < minStake;
        if (short) _deactivate(validator);
        if (short || validator.state == State.BONDED) {
            validator.state = State.JAILED;
            emit ValidatorJailed(account, stake);
        }
        _adjustReputation(account, SLASH_REPUTATION);
        token.safeTransfer(treasury, amount);
    }

    /// @inheritdoc IValidatorRegistry
    function adjustReputation(address account, int64 delta) external onlyRole(DISPUTES_ROLE) {
        if (_validators[account].state == State.NONE) revert ValidatorRegistry__WrongState(account, State.NONE);
        _adjustReputation(account, delta);
    }

    // --- views ---

    /// @inheritdoc IValidatorRegistry
    function validators(address account)
        external
        view
        returns (State state, uint96 stake, uint64 exitAt, int64 reputation, uint96 rewards)
    {
        Validator storage validator = _validators[account];
        return (validator.state, validator.stake, validator.exitAt, validator.reputation, validator.rewards);
    }

    /// @inheritdoc IValidatorRegistry
    function stakeOf(address account) external view returns (uint96) {
        return _validators[account].stake;
    }

    /// @inheritdoc IValidatorRegistry
    function isBond(address account) external view returns (bool) {
        return _validators[account].isBond;
    }

    /// @inheritdoc IValidatorRegistry
    function activeValidators() external view returns (address[] memory) {
        return _active;
    }

    /// @dev Notes the stake of the caller, who comes or comes back; what it is then, and the money, are the caller's part.
    function _enter(uint256 stake, uint96 minimum) private returns (Validator storage validator) {
        validator = _validators[msg.sender];
        if (validator.state != State.NONE && validator.state != State.EXITED) {
            revert ValidatorRegistry__WrongState(msg.sender, validator.state);
        }
        if (stake < minimum) revert ValidatorRegistry__StakeTooLow(stake, minimum);
        validator.stake = stake.toUint96();
    }

    function _activate(Validator storage validator, address account) private {
        if (_active.length == MAX_VALIDATORS) revert ValidatorRegistry__Full(MAX_VALIDATORS);
        validator.state = State.ACTIVE;
        validator.index = _active.length.toUint16();
        _active.push(account);
    }

    function _deactivate(Validator storage validator) private {
        address last = _active[_active.length - 1];
        _active[validator.index] = last;
        _validators[last].index = validator.index;
        _active.pop();
    }

    function _adjustReputation(address account, int64 delta) private {
        int64 reputation = _validators[account].reputation + delta;
        _validators[account].reputation = reputation;
        emit ReputationChanged(account, delta, reputation);
    }

    function _setThreshold(uint16 threshold_) private {
        if (threshold_ == 0 || threshold_ > MAX_VALIDATORS) revert ValidatorRegistry__BadThreshold(threshold_);
        threshold = threshold_;
        emit ThresholdChanged(threshold_);
    }

    /// @dev The members of an epoch that are still active; none before the first.
    function _stillActive(uint32 epoch) private view returns (address[] memory accounts) {
        if (epoch == 0) return accounts;
        accounts = EpochSnapshot.members(EpochSnapshot.load(address(this), epoch));
        uint256 count = 0;
        for (uint256 i = 0; i < accounts.length; ++i) {
            if (_validators[accounts[i]].state == State.ACTIVE) accounts[count++] = accounts[i];
        }
        assembly ("memory-safe") {
            mstore(accounts, count)
        }
    }

    function _pull(uint256 amount) private {
        uint256 before = token.balanceOf(address(this));
        token.safeTransferFrom(msg.sender, address(this), amount);
        uint256 received = token.balanceOf(address(this)) - before;
        if (received != amount) revert ValidatorRegistry__TransferMismatch(received, amount);
    }
}
