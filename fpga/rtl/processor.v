// The processor: fetches a layer's descriptor while the one before runs, and issues
// one activation and one word of weights a cycle. A layer with a window walks over an
// image: runs of elements, groups of neurons, columns, rows. docs/fpga.md has the pipeline
// and what it costs.
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
    output wire [9:0] table_addr,
    input wire [7:0] table_value,
    output wire result_we,
    output wire [ACTIVATIONS-1:0] result_addr,
    output wire [7:0] result
);
    // Fetching: two words, and two more of a layer with a window
    localparam IDLE = 0, FIRST = 1, SECOND = 2, LATCH = 3, THIRD = 4, FOURTH = 5;
    reg [2:0] fetch = IDLE;
    reg [PROGRAM-1:0] pc = 0;
    reg [255:0] next = 0;
    reg waiting = 0;                // next is whole
    assign program_addr = pc;
    wire next_window = next[124];

    // The layer that is issued
    reg active = 0;
    reg [15:0] out = 0, left = 0, multiplier = 0;
    reg [ACTIVATIONS-1:0] to = 0;
    reg [5:0] shift = 0;
    reg [7:0] zero = 0, low = 0, high = 0, gap = 0;
    reg [2:0] layer_table = 0;
    reg last_layer = 0, fresh = 0, turn = 0;
    reg [23:0] weight_base = 0, weight_at = 0;
    reg [BIASES-1:0] bias_base = 0, bias_at = 0;
    // Its window. Places are counted down.
    reg channelwise = 0, shared = 0, largest = 0;
    reg [15:0] run_minus_1 = 0, i = 0;
    reg [7:0] runs_minus_1 = 0, r = 0, columns_minus_1 = 0, columns_left = 0, rows_left = 0;
    reg [ACTIVATIONS-1:0] step = 0, run_step = 0, column_step = 0, row_step = 0, to_step = 0;
    // Where the element, its run, its group, its column and its row begin
    reg [ACTIVATIONS-1:0] at = 0, run_at = 0, group_at = 0, column_at = 0, row_at = 0;
    assign activation_addr = at;
    assign weight_addr = weight_at;

    wire issue = active && gap == 0;
    wire run_end = i == run_minus_1;
    wire last_input = run_end && r == runs_minus_1;
    wire group_end = issue && last_input;
    wire last_group = channelwise ? left == 1 : left <= N;
    wire last_column = columns_left == 0, last_row = rows_left == 0;
    wire layer_end = group_end && last_group && last_column && last_row;
    wire load_layer = busy && waiting && (!active || layer_end && !last_layer);
    wire [ACTIVATIONS-1:0] next_group = group_at + (channelwise ? 1'b1 : 1'b0);
    wire [ACTIVATIONS-1:0] next_column = column_at + column_step;
    wire [ACTIVATIONS-1:0] next_row = row_at + row_step;
    wire [ACTIVATIONS-1:0] next_place = !last_group ? next_group : !last_column ? next_column : next_row;
    wire [ACTIVATIONS-1:0] next_run = run_at + run_step;

    // What belongs to a group on its way to the drain
    reg read_valid = 0, read_first = 0, read_last = 0, read_largest = 0;
    reg [ACTIVATIONS+50:0] settings = 0;
    reg [BIASES-1:0] group_bias = 0;
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
                fetch <= program_word[60] ? THIRD : IDLE;
                waiting <= !program_word[60];
                if (program_word[60]) pc <= pc + 1'b1;
            end
            THIRD: begin
                next[191:128] <= program_word;
                fetch <= FOURTH;
                pc <= pc + 1'b1;
            end
            FOURTH: begin
                next[255:192] <= program_word;
                fetch <= IDLE;
                waiting <= 1;
            end
            default: ;
        endcase

        if (active && gap != 0) gap <= gap - 1'b1;
        if (issue) begin
            weight_at <= weight_at + 1'b1;
            i <= i + 1'b1;
            at <= at + step;
            if (run_end) begin
                i <= 0;
                r <= r + 1'b1;
                at <= next_run;
                run_at <= next_run;
            end
        end
        if (group_end) begin
            r <= 0;
            at <= next_place;
            run_at <= next_place;
            group_at <= next_place;
            left <= left - (channelwise ? 1 : N);
            fresh <= 0;
            turn <= 0;
            settings <= {fresh, turn, to, layer_table, high, low, zero, shift, multiplier};
            group_bias <= bias_at;
            count <= channelwise ? 1 : last_group ? left[5:0] : N;
            final_group <= layer_end && last_layer;
            if (!shared) bias_at <= bias_at + (channelwise ? 1 : N);
            else weight_at <= weight_base;
            if (last_group) begin
                left <= out;
                bias_at <= bias_base;
                weight_at <= weight_base;
                column_at <= next_place;
                columns_left <= columns_left - 1'b1;
                if (last_column) begin
                    row_at <= next_place;
                    columns_left <= columns_minus_1;
                    rows_left <= rows_left - 1'b1;
                    to <= to + to_step;
                    turn <= 1;
                end
            end
        end
        if (layer_end) begin
            active <= 0;
            weight_at <= weight_at + 1'b1;
            weight_base <= weight_at + 1'b1;
            bias_at <= bias_at + (shared ? 1 : left[BIASES-1:0]);
            bias_base <= bias_at + (shared ? 1 : left[BIASES-1:0]);
        end
        if (load_layer) begin
            active <= 1;
            waiting <= 0;
            out <= next[31:16];
            left <= next[31:16];
            at <= next[32+:ACTIVATIONS];
            run_at <= next[32+:ACTIVATIONS];
            group_at <= next[32+:ACTIVATIONS];
            column_at <= next[32+:ACTIVATIONS];
            row_at <= next[32+:ACTIVATIONS];
            to <= next[48+:ACTIVATIONS];
            multiplier <= next[79:64];
            shift <= next[85:80];
            zero <= next[95:88];
            low <= next[103:96];
            high <= next[111:104];
            gap <= next[119:112];
            last_layer <= next[120];
            layer_table <= next[123:121];
            channelwise <= next_window && next[125];
            shared <= next_window && next[126];
            largest <= next_window && next[127];
            run_minus_1 <= (next_window ? next[143:128] : next[15:0]) - 1'b1;
            step <= next_window ? next[144+:ACTIVATIONS] : 1;
            runs_minus_1 <= next_window ? next[167:160] - 1'b1 : 0;
            columns_minus_1 <= next_window ? next[175:168] - 1'b1 : 0;
            columns_left <= next_window ? next[175:168] - 1'b1 : 0;
            rows_left <= next_window ? next[183:176] - 1'b1 : 0;
            run_step <= next[192+:ACTIVATIONS];
            column_step <= next[208+:ACTIVATIONS];
            row_step <= next[224+:ACTIVATIONS];
            to_step <= next[240+:ACTIVATIONS];
            i <= 0;
            r <= 0;
            fresh <= 1;
            turn <= 1;
            if (!next[120]) fetch <= FIRST;
        end

        read_valid <= issue;
        read_first <= i == 0 && r == 0;
        read_last <= last_input;
        read_largest <= largest;

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
            weight_base <= 0;
            bias_at <= 0;
            bias_base <= 0;
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
        .clk(clk), .valid(read_valid), .first(read_first), .last(read_last), .largest(read_largest),
        .activation(activation), .weights(weights), .done(sums_done), .sums(sums));

    drain #(.N(N), .ACTIVATIONS(ACTIVATIONS), .BIASES(BIASES)) drain (
        .clk(clk), .start(start && !busy), .load(sums_done), .sums(sums), .count(count), .settings(settings),
        .group_bias(group_bias), .final_group(final_group), .bias_addr(bias_addr), .bias(bias),
        .table_addr(table_addr), .table_value(table_value), .we(result_we), .waddr(result_addr),
        .wdata(result), .finished(finished), .argmax(argmax), .overrun(overrun));
endmodule
