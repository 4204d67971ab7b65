// The multipliers and accumulators: one neuron per lane, one input per cycle. valid,
// first and last belong to the activation and the weights of the same cycle. A
// group's sums appear two cycles after its last input, when done is high.
module lanes #(
    parameter N = 8
) (
    input wire clk,
    input wire valid,
    input wire first,
    input wire last,
    input wire signed [7:0] activation,
    input wire [8*N-1:0] weights,
    output wire done,               // sums are whole in this cycle
    output wire [24*N-1:0] sums
);
    reg valid_p = 0, first_p = 0, last_p = 0;
    always @(posedge clk) begin
        valid_p <= valid;
        first_p <= first;
        last_p <= last;
    end
    assign done = valid_p && last_p;

    genvar k;
    generate
        for (k = 0; k < N; k = k + 1) begin : lane
            wire signed [7:0] weight = weights[8*k+:8];
            reg signed [15:0] product = 0;
            reg signed [23:0] sum = 0;
            wire signed [23:0] next = (first_p ? 24'sd0 : sum) + {{8{product[15]}}, product};
            assign sums[24*k+:24] = next;
            always @(posedge clk) begin
                product <= activation * weight;
                if (valid_p) sum <= next;
            end
        end
    endgenerate
endmodule
