// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.0;

/// A token for tests. `erc20.json` holds its ABI and bytecode: solc 0.8, optimised, evmVersion paris.
contract TestToken {
    string public constant name = "Test Token";
    string public constant symbol = "TEST";
    uint8 public constant decimals = 18;
    uint256 public totalSupply = type(uint256).max;
    mapping(address => uint256) public balanceOf;

    event Transfer(address indexed from, address indexed to, uint256 value);
    event Named(address indexed owner, string name);

    constructor() {
        balanceOf[msg.sender] = totalSupply;
        emit Transfer(address(0), msg.sender, totalSupply);
    }

    function transfer(address to, uint256 value) public returns (bool) {
        balanceOf[msg.sender] -= value;
        unchecked { balanceOf[to] += value; }
        emit Transfer(msg.sender, to, value);
        return true;
    }

    /// Emits `count` transfers of 1, 2, 3, ... in one transaction.
    function burst(address to, uint256 count) external {
        for (uint256 value = 1; value <= count; value++) transfer(to, value);
    }

    /// Emits an event that is no transfer.
    function named(string calldata text) external {
        emit Named(msg.sender, text);
    }
}
