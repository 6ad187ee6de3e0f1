// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.28;

interface ITransferFrom {
    function transferFrom(address from, address to, uint256 value) external returns (bool);
}

/// Many payments in one transaction, all or none, out of the caller's own funds. A payment whose token
/// is the zero address is native coin sent along with the call: it moves in an internal call and leaves
/// no log.
contract Payouts {
    struct Payment {
        address token;
        address to;
        uint256 value;
    }

    function pay(Payment[] calldata payments) external payable {
        uint256 left = msg.value;
        for (uint256 i = 0; i < payments.length; i++) {
            Payment calldata p = payments[i];
            if (p.token == address(0)) {
                left -= p.value;
                (bool sent,) = p.to.call{value: p.value}("");
                require(sent, "native payment refused");
            } else {
                require(ITransferFrom(p.token).transferFrom(msg.sender, p.to, p.value), "token payment refused");
            }
        }
        require(left == 0, "value does not match the payments");
    }
}
