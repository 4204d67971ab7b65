// The processor: fetches a layer's descriptor while the one before runs, and issues
// one activation and one word of weights a cycle. docs/fpga.md has the pipeline and
// what it costs.
module processor #(
    parameter N = 8,
    parameter ACTIVATIONS = 10,
    parameter BIASES = 8,
    parameter PROGRAM = 6
) (
    input wire clk,
    input wire start,
    output reg busy,
    output reg done,
    output wire overrun,
    output reg [31:0] cycles,
    output wire [15:0] argmax,
    // Memories; each answers in the next cycle
    output wire [PROGRAM-1:0] program_addr,
    input wire [63:0] program_word,
    output wire [ACTIVATIONS-1:0] activation_addr,
    input wire [7:0] activation,
    output wire [23:0] weight_addr,
    input wire [8*N-1:0] weights,
    output wire [BIASES-1:0] bias_addr,
    input wire [23:0] bias,
    output wire result_we,
    output wire [ACTIVATIONS-1:0] result_addr,
    output wire [7:0] result
);
    // Fetching
    localparam IDLE = 0, FIRST = 1, SECOND = 2, LATCH = 3;
    reg [1:0] fetch = IDLE;
    reg [PROGRAM-1:0] pc = 0;
    reg [127:0] next = 0;
    reg waiting = 0;                // next is whole
    assign program_addr = pc;

    // The layer that is issued
    reg active = 0;
    reg [15:0] in_minus_1 = 0, i = 0, left = 0, multiplier = 0;
    reg [ACTIVATIONS-1:0] source = 0, to = 0, at = 0;
    reg [5:0] shift = 0;
    reg [7:0] zero = 0, low = 0, high = 0, gap = 0;
    reg last_layer = 0, fresh = 0;
    reg [23:0] weight_at = 0;
    assign activation_addr = at;
    assign weight_addr = weight_at;

    wire issue = active && gap == 0;
    wire last_input = i == in_minus_1;
    wire group_end = issue && last_input;
    wire last_group = left <= N;
    wire layer_end = group_end && last_group;
    wire load_layer = busy && waiting && (!active || layer_end && !last_layer);

    // What belongs to a group on its way to the drain
    reg read_valid = 0, read_first = 0, read_last = 0;
    reg [ACTIVATIONS+46:0] settings = 0;
    reg [5:0] count = 0;
    reg final_group = 0;

    wire finished;

    always @(posedge clk) begin
        case (fetch)
            FIRST: begin
                fetch <= SECOND;
                pc <= pc + 1'b1;
            end
            SECOND: begin
                next[63:0] <= program_word;
                fetch <= LATCH;
                pc <= pc + 1'b1;
            end
            LATCH: begin
                next[127:64] <= program_word;
                fetch <= IDLE;
                waiting <= 1;
            end
            default: ;
        endcase

        if (active && gap != 0) gap <= gap - 1'b1;
        if (issue) begin
            weight_at <= weight_at + 1'b1;
            i <= i + 1'b1;
            at <= at + 1'b1;
        end
        if (group_end) begin
            i <= 0;
            at <= source;
            left <= left - N;
            fresh <= 0;
            settings <= {fresh, to, high, low, zero, shift, multiplier};
            count <= last_group ? left[5:0] : N;
            final_group <= last_group && last_layer;
        end
        if (layer_end) active <= 0;
        if (load_layer) begin
            active <= 1;
            waiting <= 0;
            in_minus_1 <= next[15:0] - 1'b1;
            left <= next[31:16];
            source <= next[32+:ACTIVATIONS];
            at <= next[32+:ACTIVATIONS];
            to <= next[48+:ACTIVATIONS];
            multiplier <= next[79:64];
            shift <= next[85:80];
            zero <= next[95:88];
            low <= next[103:96];
            high <= next[111:104];
            gap <= next[119:112];
            last_layer <= next[120];
            i <= 0;
            fresh <= 1;
            if (!next[120]) fetch <= FIRST;
        end

        read_valid <= issue;
        read_first <= i == 0;
        read_last <= last_input;

        if (busy) cycles <= cycles + 1'b1;
        if (finished) begin
            busy <= 0;
            done <= 1;
        end
        if (start && !busy) begin
            busy <= 1;
            done <= 0;
            cycles <= 0;
            pc <= 0;
            fetch <= FIRST;
            waiting <= 0;
            active <= 0;
            weight_at <= 0;
        end
    end

    initial begin
        busy = 0;
        done = 0;
        cycles = 0;
    end

    wire sums_done;
    wire [24*N-1:0] sums;
    lanes #(.N(N)) lanes (
        .clk(clk), .valid(read_valid), .first(read_first), .last(read_last),
        .activation(activation), .weights(weights), .done(sums_done), .sums(sums));

    drain #(.N(N), .ACTIVATIONS(ACTIVATIONS), .BIASES(BIASES)) drain (
        .clk(clk), .start(start && !busy), .load(sums_done), .sums(sums), .count(count), .settings(settings),
        .final_group(final_group), .bias_addr(bias_addr), .bias(bias), .we(result_we), .waddr(result_addr),
        .wdata(result), .finished(finished), .argmax(argmax), .overrun(overrun));
endmodule
