// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {VM, Vm} from "../../script/Vm.sol";
import {Handler} from "./Handler.sol";

/// @dev The cheat code that deploys by name: `new` would copy the handler, the largest contract here, into each test.
interface Deployer {
    function deployCode(string calldata artifact, bytes calldata arguments) external returns (address);
}

/// @title What holds whatever happens, in whatever order
/// @notice Run with more and longer sequences under FOUNDRY_PROFILE=ci. The actions predict what they do to the
/// contracts: one that is answered otherwise fails the run, too.
abstract contract Invariants {
    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    /// @dev Forge prints this event with -vv.
    event log(string line);

    Vm internal constant vm = VM;

    uint256 private constant STEPS = 4_000;

    Handler internal handler;

    function setUp() public {
        handler = Handler(Deployer(address(VM)).deployCode("Handler.sol:Handler", abi.encode(hostile())));
        handler.setUp();
    }

    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }

    function targetSelectors() external view returns (FuzzSelector[] memory targets) {
        targets = new FuzzSelector[](1);
        targets[0] = FuzzSelector(address(handler), actions());
    }

    function invariant_1_solvency() external view {
        handler.checkSolvency();
    }

    function invariant_2_nothingHappensTwice() external view {
        handler.checkReplays();
    }

    function invariant_3_spentWithinDeposit() external view {
        handler.checkChannels();
    }

    function invariant_4_refundAfterExpiry() external {
        handler.checkRefunds();
    }

    function invariant_5_quorumsOfPinnedEpochs() external view {
        handler.checkEpochs();
    }

    function invariant_6_computeShare() external view {
        handler.checkCompute();
    }

    function invariant_7_dustToTreasury() external view {
        handler.checkDust();
    }

    function invariant_8_slashing() external view {
        handler.checkSlashing();
    }

    function invariant_9_balanceChanges() external view {
        handler.checkWallets();
    }

    /// @dev One long walk, to see that the actions do what they are for, and don't only end early.
    function test_everyActionSucceeds() external {
        bytes4[] memory selectors = actions();
        for (uint256 i = 0; i < STEPS; ++i) {
            uint256 seed = uint256(keccak256(abi.encode("step", i)));
            (bool success, bytes memory answer) =
                address(handler).call(abi.encodeWithSelector(selectors[seed % selectors.length], seed));
            if (!success) {
                assembly ("memory-safe") {
                    revert(add(answer, 32), mload(answer))
                }
            }
        }
        handler.checkSolvency();
        handler.checkReplays();
        handler.checkChannels();
        handler.checkEpochs();
        handler.checkCompute();
        handler.checkDust();
        handler.checkSlashing();
        handler.checkWallets();
        handler.checkRefunds();
        string[] memory names = handler.names();
        for (uint256 i = 0; i < names.length; ++i) {
            emit log(string.concat(names[i], ": ", vm.toString(handler.count(names[i]))));
        }
        string[] memory wanted = outcomes();
        for (uint256 i = 0; i < wanted.length; ++i) {
            vm.assertTrue(handler.count(wanted[i]) > 0, string.concat("never: ", wanted[i]));
        }
    }

    function hostile() internal pure virtual returns (bool);

    /// @dev Those of which each has to come about.
    function outcomes() internal pure virtual returns (string[] memory wanted) {
        string[49] memory list = [
            "deposit",
            "top up for another",
            "deposit with authorization",
            "deposit refused while paused",
            "donate",
            "request withdrawal",
            "cancel withdrawal",
            "finalize withdrawal",
            "withdrawal refused after its window",
            "settle batch",
            "flawed batch refused",
            "deposit to account",
            "withdraw",
            "withdraw and book the network's share",
            "book the network's share",
            "initiate request",
            "request refused while paused",
            "complete request",
            "completion refused after expiry",
            "fail request",
            "expire request",
            "expire request while paused",
            "second end refused",
            "flawed decision refused",
            "register",
            "free a jailed validator",
            "bond",
            "free a jailed bond",
            "add stake",
            "request exit",
            "request exit of a bond",
            "finalize exit",
            "claim rewards",
            "advance epoch",
            "distribute pool",
            "distribute a gift",
            "quorum",
            "no quorum",
            "slash",
            "slash unbonding stake",
            "slash a bond",
            "slash for collusion",
            "evidence refused that was used",
            "direct slash refused",
            "skip time",
            "pause",
            "unpause",
            "set threshold",
            "withdraw from treasury"
        ];
        wanted = new string[](list.length);
        for (uint256 i = 0; i < list.length; ++i) {
            wanted[i] = list[i];
        }
    }

    /// @dev What comes more often stands here more than once.
    function actions() internal view returns (bytes4[] memory selectors) {
        bytes4[39] memory list = [
            handler.deposit.selector,
            handler.deposit.selector,
            handler.depositWithAuthorization.selector,
            handler.depositLess.selector,
            handler.donate.selector,
            handler.requestWithdrawal.selector,
            handler.cancelWithdrawal.selector,
            handler.finalizeWithdrawal.selector,
            handler.settleBatch.selector,
            handler.settleBatch.selector,
            handler.settleFlawed.selector,
            handler.depositAccount.selector,
            handler.withdraw.selector,
            handler.initiateRequest.selector,
            handler.initiateRequest.selector,
            handler.completeRequest.selector,
            handler.completeRequest.selector,
            handler.completeRequest.selector,
            handler.failRequest.selector,
            handler.expireRequest.selector,
            handler.endAgain.selector,
            handler.decideFlawed.selector,
            handler.register.selector,
            handler.addStake.selector,
            handler.requestExit.selector,
            handler.finalizeExit.selector,
            handler.claimRewards.selector,
            handler.advanceEpoch.selector,
            handler.distributePool.selector,
            handler.distribute.selector,
            handler.probeQuorum.selector,
            handler.probeQuorum.selector,
            handler.slashForTwoBatches.selector,
            handler.slashForDowntime.selector,
            handler.slashForResult.selector,
            handler.slashForCollusion.selector,
            handler.slashDirectly.selector,
            handler.skipTime.selector,
            handler.pause.selector
        ];
        bytes4[13] memory more = [
            handler.unpause.selector,
            handler.unpause.selector,
            handler.unpause.selector,
            handler.unpause.selector,
            handler.expireRequest.selector,
            handler.pause.selector,
            handler.setThreshold.selector,
            handler.withdrawTreasury.selector,
            handler.blockPayee.selector,
            handler.bookNetworkShare.selector,
            handler.bond.selector,
            handler.bond.selector,
            handler.slashForNodeResult.selector
        ];
        selectors = new bytes4[](list.length + more.length + 1);
        for (uint256 i = 0; i < list.length; ++i) {
            selectors[i] = list[i];
        }
        for (uint256 i = 0; i < more.length; ++i) {
            selectors[list.length + i] = more[i];
        }
        selectors[selectors.length - 1] = handler.strike.selector;
    }
}

/// @title The network with its own token
/// forge-config: default.invariant.fail-on-revert = true
/// forge-config: ci.invariant.fail-on-revert = true
contract InvariantsTest is Invariants {
    function hostile() internal pure override returns (bool) {
        return false;
    }
}

/// @title The network with a token that re-enters, refuses payees and keeps fees
/// forge-config: default.invariant.fail-on-revert = true
/// forge-config: ci.invariant.fail-on-revert = true
contract HostileTokenInvariantsTest is Invariants {
    function hostile() internal pure override returns (bool) {
        return true;
    }

    function outcomes() internal pure override returns (string[] memory wanted) {
        string[] memory usual = super.outcomes();
        string[6] memory more = [
            "deposit refused that arrives short",
            "block a payee",
            "unblock a payee",
            "batch struck down",
            "completion struck down",
            "refund in the middle of a deposit"
        ];
        wanted = new string[](usual.length + more.length);
        for (uint256 i = 0; i < usual.length; ++i) {
            wanted[i] = usual[i];
        }
        for (uint256 i = 0; i < more.length; ++i) {
            wanted[usual.length + i] = more[i];
        }
    }
}
