// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {AccessControl} from "@openzeppelin/contracts/access/AccessControl.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {IInferencePayment} from "./interfaces/IInferencePayment.sol";
import {INCNToken} from "./interfaces/INCNToken.sol";
import {IValidatorRegistry} from "./interfaces/IValidatorRegistry.sol";
import {Channels} from "./libraries/Channels.sol";
import {Statements} from "./Statements.sol";

/// @title The money that InferencePayment holds: channels, accounts, and what belongs to the network
abstract contract Deposits is Statements, AccessControl, ReentrancyGuardTransient, IInferencePayment {
    using SafeERC20 for IERC20;
    using SafeCast for uint256;

    struct Account {
        uint96 free;
        uint64 requestNonce;
        uint96 networkShare; // of a gateway; not booked yet
    }

    struct Globals {
        uint96 treasury;
        uint96 validatorPool;
        bool paused;
    }

    /// @notice Who may pause.
    bytes32 public constant GUARDIAN_ROLE = keccak256("GUARDIAN_ROLE");

    /// @inheritdoc IInferencePayment
    INCNToken public immutable token;
    /// @inheritdoc IInferencePayment
    IValidatorRegistry public immutable registry;
    /// @inheritdoc IInferencePayment
    uint64 public immutable WITHDRAWAL_DELAY;
    /// @inheritdoc IInferencePayment
    uint64 public immutable WITHDRAWAL_WINDOW;
    /// @inheritdoc IInferencePayment
    uint64 public immutable MAX_REQUEST_TIME;

    /// @inheritdoc IInferencePayment
    Globals public globals;

    mapping(address account => Account) internal _accounts;

    modifier whenNotPaused() {
        if (globals.paused) revert InferencePayment__Paused();
        _;
    }

    constructor(INCNToken token_, IValidatorRegistry registry_, address admin, address guardian, Config memory config) {
        if (address(token_) == address(0) || address(registry_) == address(0) || admin == address(0)) {
            revert InferencePayment__ZeroAddress();
        }
        // The latest signature that counts ends a request that was initiated in the last moment of its epoch.
        uint256 bound = uint256(registry_.snapshotLifetime()) + config.maxRequestTime + registry_.disputeWindow();
        bool sound = config.maxRequestTime > 0 && config.withdrawalWindow > 0 && registry_.unbondingPeriod() >= bound;
        if (!sound) revert InferencePayment__BadConfig(config);
        token = token_;
        registry = registry_;
        WITHDRAWAL_DELAY = config.withdrawalDelay;
        WITHDRAWAL_WINDOW = config.withdrawalWindow;
        MAX_REQUEST_TIME = config.maxRequestTime;
        _grantRole(DEFAULT_ADMIN_ROLE, admin);
        _grantRole(GUARDIAN_ROLE, guardian);
    }

    // --- channels ---

    /// @inheritdoc IInferencePayment
    function deposit(address client, address signer, address gateway, uint96 amount)
        external
        nonReentrant
        whenNotPaused
    {
        _creditChannel(client, signer, gateway, amount);
        _pull(amount);
    }

    /// @inheritdoc IInferencePayment
    function depositWithAuthorization(
        address client,
        address signer,
        address gateway,
        uint96 amount,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 salt,
        bytes calldata signature
    ) external nonReentrant whenNotPaused {
        bytes32 id = _creditChannel(client, signer, gateway, amount);
        uint256 before = token.balanceOf(address(this));
        token.receiveWithAuthorization(
            client, address(this), amount, validAfter, validBefore, keccak256(abi.encode(id, salt)), signature
        );
        _checkReceived(before, amount);
    }

    /// @inheritdoc IInferencePayment
    function requestWithdrawal(address signer, address gateway) external {
        bytes32 id = channelId(msg.sender, signer, gateway);
        Channels.Channel storage channel = Channels.find(id);
        if (channel.deposited == channel.spent) revert InferencePayment__ChannelEmpty(id);
        if (_isExiting(channel.unlockAt)) revert InferencePayment__AlreadyExiting(id, channel.unlockAt);
        uint64 unlockAt = (block.timestamp + WITHDRAWAL_DELAY).toUint64();
        channel.unlockAt = unlockAt;
        emit WithdrawalRequested(id, msg.sender, unlockAt);
    }

    /// @inheritdoc IInferencePayment
    function cancelWithdrawal(address signer, address gateway) external {
        bytes32 id = channelId(msg.sender, signer, gateway);
        Channels.Channel storage channel = Channels.find(id);
        if (!_isExiting(channel.unlockAt)) revert InferencePayment__NotExiting(id);
        channel.unlockAt = 0;
        emit WithdrawalCancelled(id, msg.sender);
    }

    /// @inheritdoc IInferencePayment
    function finalizeWithdrawal(address client, address signer, address gateway) external nonReentrant {
        bytes32 id = channelId(client, signer, gateway);
        Channels.Channel storage channel = Channels.find(id);
        uint64 unlockAt = channel.unlockAt;
        if (!_isExiting(unlockAt)) revert InferencePayment__NotExiting(id);
        if (block.timestamp < unlockAt) revert InferencePayment__StillLocked(id, unlockAt);
        uint96 rest = channel.deposited - channel.spent;
        channel.deposited = channel.spent;
        channel.unlockAt = 0;
        emit WithdrawalFinalized(id, client, rest);
        _pay(client, rest);
    }

    /// @inheritdoc IInferencePayment
    function channelId(address client, address signer, address gateway) public pure returns (bytes32) {
        return Channels.idOf(client, signer, gateway);
    }

    /// @inheritdoc IInferencePayment
    function channels(bytes32 id) external view returns (uint96 deposited, uint96 spent, uint64 unlockAt) {
        Channels.Channel storage channel = Channels.find(id);
        return (channel.deposited, channel.spent, channel.unlockAt);
    }

    // --- accounts ---

    /// @inheritdoc IInferencePayment
    function depositAccount(uint96 amount) external nonReentrant whenNotPaused {
        if (amount == 0) revert InferencePayment__ZeroAmount();
        _accounts[msg.sender].free += amount;
        emit AccountDeposited(msg.sender, amount);
        _pull(amount);
    }

    /// @inheritdoc IInferencePayment
    function withdraw(uint96 amount) external nonReentrant {
        if (amount == 0) revert InferencePayment__ZeroAmount();
        Account storage account = _accounts[msg.sender];
        uint96 free = account.free;
        if (amount > free) revert InferencePayment__InsufficientFunds(msg.sender, free, amount);
        account.free = free - amount;
        if (account.networkShare != 0) _bookNetworkShare(msg.sender);
        emit AccountWithdrawn(msg.sender, amount);
        IERC20(token).safeTransfer(msg.sender, amount);
    }

    /// @inheritdoc IInferencePayment
    function accounts(address account) external view returns (uint96 free, uint64 requestNonce) {
        return (_accounts[account].free, _accounts[account].requestNonce);
    }

    // --- money of the network ---

    /// @inheritdoc IInferencePayment
    function bookNetworkShare(address gateway) external {
        if (_accounts[gateway].networkShare == 0) revert InferencePayment__ZeroAmount();
        _bookNetworkShare(gateway);
    }

    /// @inheritdoc IInferencePayment
    function networkShare(address gateway) external view returns (uint96) {
        return _accounts[gateway].networkShare;
    }

    /// @inheritdoc IInferencePayment
    function distributeValidatorPool() external nonReentrant {
        uint96 amount = globals.validatorPool;
        if (amount == 0) revert InferencePayment__ZeroAmount();
        globals.validatorPool = 0;
        emit ValidatorPoolDistributed(amount);
        IERC20(token).forceApprove(address(registry), amount);
        registry.distribute(amount);
    }

    /// @inheritdoc IInferencePayment
    function withdrawTreasury(address to, uint96 amount) external nonReentrant onlyRole(DEFAULT_ADMIN_ROLE) {
        uint96 treasury = globals.treasury;
        if (amount > treasury) revert InferencePayment__InsufficientFunds(address(this), treasury, amount);
        globals.treasury = treasury - amount;
        emit TreasuryWithdrawn(to, amount);
        IERC20(token).safeTransfer(to, amount);
    }

    /// @inheritdoc IInferencePayment
    function pause() external onlyRole(GUARDIAN_ROLE) {
        globals.paused = true;
        emit Paused(msg.sender);
    }

    /// @inheritdoc IInferencePayment
    function unpause() external onlyRole(DEFAULT_ADMIN_ROLE) {
        globals.paused = false;
        emit Unpaused(msg.sender);
    }

    // --- inside ---

    /// @dev Pays directly; where the token refuses, the payee's account is credited, so that nobody else is held up.
    function _pay(address payee, uint96 amount) internal {
        if (amount == 0 || IERC20(token).trySafeTransfer(payee, amount)) return;
        _accounts[payee].free += amount;
        emit AccountCredited(payee, amount);
    }

    function _bookNetworkShare(address gateway) private {
        uint96 each = _accounts[gateway].networkShare / 2; // always even
        _accounts[gateway].networkShare = 0;
        globals.treasury += each;
        globals.validatorPool += each;
        emit NetworkShareBooked(gateway, each);
    }

    function _creditChannel(address client, address signer, address gateway, uint96 amount)
        private
        returns (bytes32 id)
    {
        if (client == address(0) || signer == address(0) || gateway == address(0)) {
            revert InferencePayment__ZeroAddress();
        }
        if (amount == 0) revert InferencePayment__ZeroAmount();
        id = channelId(client, signer, gateway);
        uint96 deposited = Channels.find(id).deposited + amount;
        // An exit goes on: otherwise anybody could end it with a deposit of one unit.
        Channels.find(id).deposited = deposited;
        emit Deposited(id, client, gateway, signer, amount, deposited);
    }

    /// @dev An exit that was not finalized in its window has lapsed, so that none can be kept in readiness.
    function _isExiting(uint64 unlockAt) private view returns (bool) {
        return unlockAt != 0 && block.timestamp <= uint256(unlockAt) + WITHDRAWAL_WINDOW;
    }

    function _pull(uint96 amount) private {
        uint256 before = token.balanceOf(address(this));
        IERC20(token).safeTransferFrom(msg.sender, address(this), amount);
        _checkReceived(before, amount);
    }

    function _checkReceived(uint256 before, uint256 amount) private view {
        uint256 received = token.balanceOf(address(this)) - before;
        if (received != amount) revert InferencePayment__TransferMismatch(received, amount);
    }
}
