// Takes a group's sums and brings one a cycle to 8 bits:
//
//   floor((sum + bias) * multiplier / 2^shift + 1/2) + zero, clamped to low..high
//
// or what a table has for that, and writes them one after the other, from `to` on where a layer
// or a row of it begins. The settings belong to the group and travel with its values, because the next layer's
// first group may come while this layer's last values are on their way.
module drain #(
    parameter N = 8,
    parameter ACTIVATIONS = 10,
    parameter BIASES = 8
) (
    input wire clk,
    input wire start,               // of an inference
    // A group: its sums are taken when load is high.
    input wire load,
    input wire [24*N-1:0] sums,
    input wire [5:0] count,         // of its neurons, 1 to N
    input wire [ACTIVATIONS+50:0] settings,
    input wire [BIASES-1:0] group_bias,   // where the group's biases begin
    input wire final_group,         // the program's last
    // Biases
    output wire [BIASES-1:0] bias_addr,
    input wire [23:0] bias,
    // Tables, the first at 0
    output wire [9:0] table_addr,
    input wire [7:0] table_value,
    // Results
    output wire we,
    output wire [ACTIVATIONS-1:0] waddr,
    output wire [7:0] wdata,
    output wire finished,           // the program's last result is written in this cycle
    output reg [15:0] argmax,
    output reg overrun              // a group came before the one before was gone
);
    // settings: first of the layer, first of a row, to, table, high, low, zero, shift, multiplier
    localparam S = ACTIVATIONS + 51;

    // Holding
    reg [24*N-1:0] held = 0;
    reg [5:0] left = 0;
    reg [S-1:0] held_s = 0;
    reg held_final = 0;
    reg [BIASES-1:0] at = 0;
    wire take = left != 0;
    wire [BIASES-1:0] bias_next = load ? group_bias : take ? at + 1'b1 : at;
    assign bias_addr = bias_next; // one cycle ahead: the memory answers in the next

    always @(posedge clk) begin
        if (load) begin
            held <= sums;
            left <= count;
            held_s <= settings;
            held_final <= final_group;
            if (left > 1) overrun <= 1;
        end else if (take) begin
            held <= held >> 24;
            left <= left - 1'b1;
            held_s[S-1:S-2] <= 0;
        end
        at <= bias_next;
        if (start) overrun <= 0;
    end

    // Bias
    reg v1 = 0, f1 = 0;
    reg signed [23:0] s1 = 0;
    reg [S-1:0] c1 = 0;
    // The halves of the product: 24 bits by 8
    reg v2 = 0, f2 = 0;
    reg signed [32:0] low2 = 0, high2 = 0;
    reg [S-1:16] c2 = 0;
    // The product
    reg v3 = 0, f3 = 0;
    reg signed [40:0] p3 = 0;       // twice the product, for the bit that rounds
    reg [S-1:16] c3 = 0;
    // Shifted by eights
    reg v4 = 0, f4 = 0;
    reg signed [40:0] p4 = 0;
    reg [S-1:16] c4 = 0;
    // Shifted, and cut to what the clamp needs
    reg v5 = 0, f5 = 0;
    reg signed [10:0] p5 = 0;
    reg [S-1:22] c5 = 0;
    // Clamped
    reg v6 = 0, f6 = 0;
    reg signed [7:0] y6 = 0;
    reg [S-1:46] c6 = 0;
    // Looked up
    reg v7 = 0, f7 = 0;
    reg signed [7:0] y7 = 0;
    reg [S-1:46] c7 = 0;

    wire signed [40:0] fine = p4 >>> c4[18:16];
    wire signed [11:0] rounded = (p5 + 12'sd1) >>> 1;
    wire signed [7:0] zero = c5[29:22], low = c5[37:30], high = c5[45:38];
    wire signed [11:0] low12 = {{4{low[7]}}, low}, high12 = {{4{high[7]}}, high};
    wire signed [11:0] q = rounded + $signed({{4{zero[7]}}, zero});

    always @(posedge clk) begin
        v1 <= take;
        f1 <= take && held_final && left == 1;
        s1 <= held[23:0] + bias;
        c1 <= held_s;

        v2 <= v1;
        f2 <= f1;
        low2 <= s1 * $signed({1'b0, c1[7:0]});
        high2 <= s1 * $signed({1'b0, c1[15:8]});
        c2 <= c1[S-1:16];

        v3 <= v2;
        f3 <= f2;
        p3 <= {{7{low2[32]}}, low2, 1'b0} + {high2[31:0], 9'b0};
        c3 <= c2;

        v4 <= v3;
        f4 <= f3;
        p4 <= p3 >>> {c3[21:19], 3'b0};
        c4 <= c3;

        v5 <= v4;
        f5 <= f4;
        if (fine > 41'sd1023) p5 <= 11'sd1023;
        else if (fine < -41'sd1024) p5 <= -11'sd1024;
        else p5 <= fine[10:0];
        c5 <= c4[S-1:22];

        v6 <= v5;
        f6 <= f5;
        if (q > high12) y6 <= high;
        else if (q < low12) y6 <= low;
        else y6 <= q[7:0];
        c6 <= c5[S-1:46];

        v7 <= v6;
        f7 <= f6;
        y7 <= y6;
        c7 <= c6;
    end

    wire [2:0] which6 = c6[48:46] - 1'b1;
    assign table_addr = {which6[1:0], y6 ^ 8'h80};
    wire looked_up = c7[48:46] != 0;
    wire signed [7:0] y = looked_up ? $signed(table_value) : y7;
    wire first = c7[S-1], turn = c7[S-2];

    // Writing
    reg [ACTIVATIONS-1:0] next_to = 0;
    reg [15:0] index = 0;
    reg signed [7:0] best = 0;
    assign we = v7;
    assign waddr = turn ? c7[49+:ACTIVATIONS] : next_to;
    assign wdata = y;
    assign finished = f7;

    always @(posedge clk) begin
        if (v7) begin
            next_to <= waddr + 1'b1;
            index <= first ? 16'd1 : index + 1'b1;
            if (first || y > best) begin
                best <= y;
                argmax <= first ? 16'd0 : index;
            end
        end
    end

    initial begin
        argmax = 0;
        overrun = 0;
    end
endmodule
