// The multipliers and accumulators: one neuron per lane, one input per cycle. valid,
// first, last and largest belong to the activation and the weights of the same cycle. A
// group's sums appear two cycles after its last input, when done is high. With largest
// the first lane keeps the largest product.
module lanes #(
    parameter N = 8
) (
    input wire clk,
    input wire valid,
    input wire first,
    input wire last,
    input wire largest,
    input wire signed [7:0] activation,
    input wire [8*N-1:0] weights,
    output wire done,               // sums are whole in this cycle
    output wire [24*N-1:0] sums
);
    reg valid_p = 0, first_p = 0, last_p = 0, largest_p = 0;
    always @(posedge clk) begin
        valid_p <= valid;
        first_p <= first;
        last_p <= last;
        largest_p <= largest;
    end
    assign done = valid_p && last_p;

    wire [16*N-1:0] products;
    products #(.N(N)) multipliers (.clk(clk), .activation(activation), .weights(weights), .products(products));

    genvar k;
    generate
        for (k = 0; k < N; k = k + 1) begin : lane
            wire signed [15:0] product = products[16*k+:16];
            reg signed [23:0] sum = 0;
            wire signed [23:0] wide = {{8{product[15]}}, product};
            wire signed [23:0] next = (first_p ? 24'sd0 : sum) + wide;
            if (k == 0) begin : pool
                wire signed [23:0] top = !first_p && sum > wide ? sum : wide;
                assign sums[23:0] = largest_p ? top : next;
            end else begin : add
                assign sums[24*k+:24] = next;
            end
            always @(posedge clk) if (valid_p) sum <= sums[24*k+:24];
        end
    endgenerate
endmodule

// One product a lane, a cycle after its factors.
module products #(
    parameter N = 8
) (
    input wire clk,
    input wire signed [7:0] activation,
    input wire [8*N-1:0] weights,
    output wire [16*N-1:0] products
);
    genvar k;
    generate
`ifdef ICE40_ULTRAPLUS
        // A block multiplies for two lanes: the upper halves of A and B, and the lower ones.
        for (k = 0; k < N; k = k + 2) begin : pair
            SB_MAC16 #(
                .MODE_8x8(1'b1), .A_SIGNED(1'b1), .B_SIGNED(1'b1),
                .TOP_8x8_MULT_REG(1'b1), .BOT_8x8_MULT_REG(1'b1),
                .TOPOUTPUT_SELECT(2'b10), .BOTOUTPUT_SELECT(2'b10) // the products themselves
            ) mac (
                .CLK(clk), .CE(1'b1), .A({activation, activation}), .B(weights[8*k+:16]), .C(16'b0), .D(16'b0),
                .AHOLD(1'b0), .BHOLD(1'b0), .CHOLD(1'b0), .DHOLD(1'b0),
                .IRSTTOP(1'b0), .IRSTBOT(1'b0), .ORSTTOP(1'b0), .ORSTBOT(1'b0), .OLOADTOP(1'b0), .OLOADBOT(1'b0),
                .ADDSUBTOP(1'b0), .ADDSUBBOT(1'b0), .OHOLDTOP(1'b0), .OHOLDBOT(1'b0), .CI(1'b0), .ACCUMCI(1'b0), .SIGNEXTIN(1'b0),
                .O(products[16*k+:32]));
        end
`else
        for (k = 0; k < N; k = k + 1) begin : lane
            wire signed [7:0] weight = weights[8*k+:8];
            reg signed [15:0] product = 0;
            always @(posedge clk) product <= activation * weight;
            assign products[16*k+:16] = product;
        end
`endif
    endgenerate
endmodule
