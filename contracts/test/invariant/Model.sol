// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IInferencePayment} from "../../src/interfaces/IInferencePayment.sol";
import {IValidatorRegistry} from "../../src/interfaces/IValidatorRegistry.sol";
import {InferencePayment} from "../../src/InferencePayment.sol";
import {NCNToken} from "../../src/NCNToken.sol";
import {HostileToken} from "../attacks/HostileToken.sol";
import {Network} from "../Network.sol";

/// @title Who is there, and what the contracts should hold by an account kept apart from them
/// @notice The books are kept from what was asked for, never read back from the contracts. One validator also runs a
/// gateway and another one also computes, so that a quorum may have to do without them.
abstract contract Model is Network {
    enum Outcome {
        LIVE,
        COMPLETED,
        FAILED,
        EXPIRED
    }

    struct Book {
        address client;
        address signer;
        address gateway;
        uint256 deposited;
        uint256 spent;
        uint256 unlockAt;
    }

    struct Case {
        IInferencePayment.Request request;
        Outcome outcome;
    }

    struct Seat {
        IValidatorRegistry.State state;
        uint256 stake;
        uint256 exitAt;
        uint256 rewards;
        bool isBond;
    }

    uint256 internal constant CLIENTS = 3;
    uint256 internal constant CANDIDATES = 10;
    /// @dev Of them the last ones may bond instead, so that enough are left to fill the seats.
    uint256 internal constant BONDABLE = 3;
    uint256 internal constant WEALTH = 1_000_000 ether;

    bool internal immutable hostile;
    /// @dev A second deployment on the same registry, with the same channels: what is signed for one means nothing
    /// there.
    InferencePayment internal twin;

    // --- people ---

    address[] internal clients;
    address[] internal gateways;
    address[] internal nodes;
    address[] internal candidates;
    address[] internal people;
    mapping(address account => uint256) internal keyOf;

    // --- money ---

    mapping(address account => uint256) internal wallet;
    mapping(address account => uint256) internal free;
    mapping(address account => bool) internal refused;
    uint256 internal donated;
    uint256 internal donatedToRegistry;
    uint256 internal treasury;
    uint256 internal pool;
    uint256 internal escrowed;
    /// @dev What waits at a gateway to be booked for the network.
    mapping(address gateway => uint256) internal waiting;

    // --- channels, batches, requests ---

    Book[] internal books;
    mapping(address gateway => uint64) internal lastNonce;
    mapping(address gateway => mapping(uint64 nonce => bytes32)) internal settled;
    mapping(address client => uint64) internal nextNonce;
    Case[] internal cases;
    bool internal paused;

    // --- what all batches and requests came to ---

    uint256 internal batchesTotal;
    uint256 internal batchesCompute;
    uint256 internal batchesReceipts;
    uint256 internal batchesSettled;
    uint256 internal feesTotal;
    uint256 internal feesCompute;
    uint256 internal gatewaysTotal;
    uint256 internal poolTotal;
    uint256 internal treasuryTotal;

    // --- validators ---

    mapping(address validator => Seat) internal seats;
    mapping(uint32 epoch => address[]) internal pinned;
    mapping(uint32 epoch => uint256) internal validUntil;
    mapping(uint32 epoch => uint256) internal quorumSize;
    uint256 internal threshold = 3;
    mapping(bytes32 evidence => bool) internal used;
    uint32 internal epoch;
    uint256 internal epochStart;
    uint256 internal carried;
    uint256 internal slashed;

    // --- what happened ---

    string[] private _names;
    mapping(string name => uint256) private _counts;
    uint256 private _entropy;

    constructor(bool hostile_) {
        hostile = hostile_;
    }

    function deployToken() internal override returns (NCNToken) {
        return hostile ? new HostileToken(address(this), 1_000_000_000 ether) : super.deployToken();
    }

    /// @dev Short epochs, so that there are many of them, and still time to end a request.
    function registryConfig() internal pure override returns (IValidatorRegistry.Config memory config) {
        config = super.registryConfig();
        config.epochLength = 1 hours;
    }

    function setUp() public virtual override {
        super.setUp();
        twin = new InferencePayment(token, registry, timelock, guardian, paymentConfig());
        for (uint256 i = 0; i < CANDIDATES; ++i) {
            candidates.push(_person(validatorKey(i)));
            token.transfer(candidates[i], 100 * STAKE);
            vm.prank(candidates[i]);
            token.approve(address(registry), type(uint256).max);
        }
        gateways = [gateway, candidates[0]];
        nodes = [node, _named("second node"), candidates[1]];
        for (uint256 i = 0; i < CLIENTS; ++i) {
            clients.push(_person(CLIENT_KEY + i));
            fund(clients[i], WEALTH);
            vm.prank(clients[i]);
            token.approve(address(twin), type(uint256).max);
        }
        for (uint256 i = 0; i < CLIENTS; ++i) {
            address signer = _person(SESSION_KEY + i);
            for (uint256 j = 0; j < gateways.length; ++j) {
                _open(clients[i], clients[i], gateways[j]);
                _open(clients[i], signer, gateways[j]);
            }
        }
        people.push(gateway);
        people.push(nodes[0]);
        people.push(nodes[1]);
        people.push(treasurer);
        people.push(timelock);
        people.push(stranger);
        people.push(address(token));
        people.push(address(payment));
        people.push(address(registry));
        people.push(address(twin));
        for (uint256 i = 0; i < people.length; ++i) {
            wallet[people[i]] = token.balanceOf(people[i]);
        }
        for (uint256 i = 0; i < VALIDATORS; ++i) {
            seats[candidates[i]] = Seat(IValidatorRegistry.State.ACTIVE, STAKE, 0, 0, false);
            pinned[1].push(candidates[i]);
        }
        (epoch, epochStart, quorumSize[1]) = (1, START, 3);
        validUntil[1] = START + registryConfig().snapshotLifetime;
    }

    // --- what the invariants read ---

    function names() external view returns (string[] memory) {
        return _names;
    }

    function count(string calldata name) external view returns (uint256) {
        return _counts[name];
    }

    // --- inside ---

    function _person(uint256 key) private returns (address account) {
        account = vm.addr(key);
        keyOf[account] = key;
        people.push(account);
    }

    function _open(address payer, address signer, address to) internal {
        books.push(Book(payer, signer, to, 0, 0, 0));
        if (payer == address(token)) return;
        vm.prank(payer);
        twin.deposit(payer, signer, to, 1_000 ether);
    }

    function _count(string memory name) internal {
        if (_counts[name]++ == 0) _names.push(name);
    }

    /// @dev Begins an action: what it then chooses follows from the seed.
    function _seed(uint256 seed) internal {
        _entropy = seed;
    }

    /// @dev A number from 0 to limit - 1.
    function _random(uint256 limit) internal returns (uint256) {
        _entropy = uint256(keccak256(abi.encode(_entropy)));
        return _entropy % limit;
    }

    function _oneIn(uint256 chances) internal returns (bool) {
        return _random(chances) == 0;
    }

    function _anyOf(address[] storage accounts) internal returns (address) {
        return accounts[_random(accounts.length)];
    }

    /// @dev Between 1 unit and `most`: often a round amount, often an odd one, sometimes either end.
    function _amount(uint256 most) internal returns (uint96) {
        uint256 kind = _random(8);
        if (kind == 0) return 1;
        if (kind == 1) return uint96(most);
        uint256 amount = 1 + _random(most);
        return uint96(kind < 5 && amount > 1 ether ? amount - (amount % 1 ether) : amount);
    }

    function _move(address from, address to, uint256 amount) internal {
        wallet[from] -= amount;
        wallet[to] += amount;
    }

    /// @dev Pays out of the contract, or credits where the token refuses.
    function _payOut(address payee, uint256 amount) internal {
        if (refused[payee]) free[payee] += amount;
        else _move(address(payment), payee, amount);
    }

    function _isExiting(Book storage book) internal view returns (bool) {
        return book.unlockAt != 0 && block.timestamp <= book.unlockAt + payment.WITHDRAWAL_WINDOW();
    }

    // --- calls ---

    function _try(address caller, address target, bytes memory data) internal returns (bool, bytes memory) {
        vm.prank(caller);
        return target.call(data);
    }

    /// @dev A call that has to succeed, and in which no strike of a hostile token gets past the guard.
    function _must(address caller, address target, bytes memory data) internal returns (bytes memory) {
        (bool success, bytes memory answer) = _try(caller, target, data);
        if (!success) {
            assembly ("memory-safe") {
                revert(add(answer, 32), mload(answer))
            }
        }
        if (hostile) vm.assertEq(HostileToken(address(token)).breaches(), 0, "a re-entering call got past the guard");
        return answer;
    }

    /// @dev A call that has to be refused, for this reason.
    function _mustFail(address caller, address target, bytes memory data, bytes4 reason) internal {
        (bool success, bytes memory answer) = _try(caller, target, data);
        vm.assertFalse(success, "a call that must be refused was not");
        vm.assertEq(bytes32(bytes4(answer)), bytes32(reason), "refused for another reason");
    }
}
