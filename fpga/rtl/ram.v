// A memory with one port to write and one to read. What is read while the same word
// is written is the old word.
module ram #(
    parameter WIDTH = 8,
    parameter BITS = 8
) (
    input wire clk,
    input wire we,
    input wire [BITS-1:0] waddr,
    input wire [WIDTH-1:0] wdata,
    input wire [BITS-1:0] raddr,
    output reg [WIDTH-1:0] rdata
);
    reg [WIDTH-1:0] words[0:(1<<BITS)-1];

    always @(posedge clk) begin
        if (we) words[waddr] <= wdata;
        rdata <= words[raddr];
    end
endmodule

// The weights: a memory with a single port, since they are never written while they
// are read. iCE40 UltraPlus has blocks of 16384 words of 16 bits for that.
module weight_ram #(
    parameter WIDTH = 64,
    parameter BITS = 10
) (
    input wire clk,
    input wire we,
    input wire [BITS-1:0] addr,
    input wire [WIDTH-1:0] wdata,
    output wire [WIDTH-1:0] rdata
);
`ifdef ICE40_ULTRAPLUS
    genvar b;
    generate
        for (b = 0; b < WIDTH / 16; b = b + 1) begin : block
            SB_SPRAM256KA spram (
                .ADDRESS(addr),
                .DATAIN(wdata[16*b+:16]),
                .MASKWREN(4'b1111),
                .WREN(we),
                .CHIPSELECT(1'b1),
                .CLOCK(clk),
                .STANDBY(1'b0),
                .SLEEP(1'b0),
                .POWEROFF(1'b1),
                .DATAOUT(rdata[16*b+:16])
            );
        end
    endgenerate
`else
    ram #(.WIDTH(WIDTH), .BITS(BITS)) plain (
        .clk(clk), .we(we), .waddr(addr), .wdata(wdata), .raddr(addr), .rdata(rdata));
`endif
endmodule
