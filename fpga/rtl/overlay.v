// The overlay behind a bus of bytes: registers, memories and the processor.
// package program (host.go) lists the addresses. A request is a cycle with req high;
// ack is high for a cycle when it is done, and rdata belongs to it. The next request
// may come after that.
module overlay #(
    parameter N = 8,
    parameter ACTIVATIONS = 10,
    parameter BIASES = 8,
    parameter PROGRAM = 6,
    parameter WEIGHTS = 10,
    parameter TABLES = 9,
    parameter [127:0] UUID = 128'h0
) (
    input wire clk,
    input wire req,
    input wire we,
    input wire [23:0] addr,
    input wire [7:0] wdata,
    output reg ack,
    output reg [7:0] rdata,
    output wire busy
);
    localparam [15:0] ISA = 2;
    localparam L = $clog2(N);

    // Requests: the address in the first cycle, the memory's answer in the second.
    reg [1:0] step = 0;
    reg [23:0] a = 0;
    reg [7:0] d = 0;
    reg w = 0;
    wire in_weights = a[23];
    wire in_program = a[23:20] == 4'h1;
    wire in_biases = a[23:20] == 4'h2;
    wire in_activations = a[23:20] == 4'h3;
    wire in_tables = a[23:20] == 4'h4;
    wire in_registers = a[23:20] == 4'h0;
    wire write = step == 1 && w && !busy;

    // A word is written with its last byte; the ones before wait here.
    localparam WORD = N > 8 ? N : 8;
    reg [8*WORD-1:0] word = 0;
    wire [8*WORD-1:0] with_byte;
    genvar b;
    generate
        for (b = 0; b < WORD; b = b + 1) begin : byte_of_word
            wire mine = in_weights ? a[L-1:0] == b
                      : in_program ? a[2:0] == b
                      : a[1:0] == b;
            assign with_byte[8*b+:8] = mine ? d : word[8*b+:8];
        end
    endgenerate

    wire start = write && a == 24'h000020 && d[0];
    wire done, overrun;
    wire [31:0] cycles;
    wire [15:0] argmax;

    wire [PROGRAM-1:0] program_addr;
    wire [63:0] program_word;
    wire [ACTIVATIONS-1:0] activation_addr, result_addr;
    wire [7:0] activation, result;
    wire result_we;
    wire [23:0] weight_addr;
    wire [8*N-1:0] weights;
    wire [BIASES-1:0] bias_addr;
    wire [23:0] bias;
    wire [9:0] table_addr;
    wire [7:0] table_value;

    ram #(.WIDTH(64), .BITS(PROGRAM)) program_ram (
        .clk(clk), .we(write && in_program && a[2:0] == 7), .waddr(a[3+:PROGRAM]), .wdata(with_byte[63:0]),
        .raddr(busy ? program_addr : a[3+:PROGRAM]), .rdata(program_word));
    ram #(.WIDTH(24), .BITS(BIASES)) bias_ram (
        .clk(clk), .we(write && in_biases && a[1:0] == 3), .waddr(a[2+:BIASES]), .wdata(word[23:0]),
        .raddr(busy ? bias_addr : a[2+:BIASES]), .rdata(bias));
    ram #(.WIDTH(8), .BITS(ACTIVATIONS)) activation_ram (
        .clk(clk), .we(busy ? result_we : write && in_activations),
        .waddr(busy ? result_addr : a[0+:ACTIVATIONS]), .wdata(busy ? result : d),
        .raddr(busy ? activation_addr : a[0+:ACTIVATIONS]), .rdata(activation));
    ram #(.WIDTH(8), .BITS(TABLES)) table_ram (
        .clk(clk), .we(write && in_tables), .waddr(a[0+:TABLES]), .wdata(d),
        .raddr(busy ? table_addr[TABLES-1:0] : a[0+:TABLES]), .rdata(table_value));
    weight_ram #(.WIDTH(8 * N), .BITS(WEIGHTS)) weights_ram (
        .clk(clk), .we(write && in_weights && a[L-1:0] == N - 1),
        .addr(busy ? weight_addr[WEIGHTS-1:0] : a[L+:WEIGHTS]), .wdata(with_byte[8*N-1:0]), .rdata(weights));

    processor #(.N(N), .ACTIVATIONS(ACTIVATIONS), .BIASES(BIASES), .PROGRAM(PROGRAM)) processor (
        .clk(clk), .start(start), .busy(busy), .done(done), .overrun(overrun), .cycles(cycles), .argmax(argmax),
        .program_addr(program_addr), .program_word(program_word),
        .activation_addr(activation_addr), .activation(activation),
        .weight_addr(weight_addr), .weights(weights), .bias_addr(bias_addr), .bias(bias),
        .table_addr(table_addr), .table_value(table_value), .result_we(result_we), .result_addr(result_addr), .result(result));

    function [7:0] register(input [5:0] at);
        case (at)
            6'h00: register = "A";
            6'h01: register = "T";
            6'h02: register = "N";
            6'h03: register = "P";
            6'h04: register = ISA[7:0];
            6'h05: register = ISA[15:8];
            6'h06: register = N;
            6'h08: register = ACTIVATIONS;
            6'h09: register = BIASES;
            6'h0a: register = PROGRAM;
            6'h0b: register = WEIGHTS;
            6'h0c: register = TABLES;
            6'h21: register = {5'b0, overrun, done, busy};
            6'h22: register = argmax[7:0];
            6'h23: register = argmax[15:8];
            6'h24: register = cycles[7:0];
            6'h25: register = cycles[15:8];
            6'h26: register = cycles[23:16];
            6'h27: register = cycles[31:24];
            default: register = at[5:4] == 2'b01 ? UUID[8*(15-at[3:0])+:8] : 8'h00;
        endcase
    endfunction

    always @(posedge clk) begin
        ack <= 0;
        case (step)
            0: if (req) begin
                a <= addr;
                d <= wdata;
                w <= we;
                step <= 1;
            end
            1: begin
                if (write) word <= with_byte;
                step <= 2;
            end
            default: begin
                rdata <= in_weights ? weights[8*a[L-1:0]+:8]
                       : in_program ? program_word[8*a[2:0]+:8]
                       : in_biases ? (a[1:0] == 3 ? 8'h00 : bias[8*a[1:0]+:8])
                       : in_activations ? activation
                       : in_tables ? table_value
                       : in_registers && a[19:6] == 0 ? register(a[5:0]) : 8'h00;
                ack <= 1;
                step <= 0;
            end
        endcase
    end

    initial begin
        ack = 0;
        rdata = 0;
    end
endmodule
