// The overlay behind AXI4-Lite with 32 bits of data. A word is four requests of a
// byte, in ascending order; bytes whose strobe is low are left out. One transaction at a time,
// a write before a read. The answer is always OKAY.
module overlay_axilite #(
    parameter N = 8,
    parameter ACTIVATIONS = 10,
    parameter BIASES = 8,
    parameter PROGRAM = 6,
    parameter WEIGHTS = 10,
    parameter TABLES = 9,
    parameter [127:0] UUID = 128'h0
) (
    input wire aclk,
    input wire aresetn,
    input wire [23:0] awaddr,
    input wire awvalid,
    output wire awready,
    input wire [31:0] wdata,
    input wire [3:0] wstrb,
    input wire wvalid,
    output wire wready,
    output wire [1:0] bresp,
    output reg bvalid,
    input wire bready,
    input wire [23:0] araddr,
    input wire arvalid,
    output wire arready,
    output reg [31:0] rdata,
    output wire [1:0] rresp,
    output reg rvalid,
    input wire rready,
    output wire busy
);
    localparam IDLE = 0, ASK = 1, HEAR = 2;
    reg [1:0] state = IDLE;
    reg writing = 0;
    reg [1:0] lane = 0;
    reg [21:0] base = 0;
    reg [31:0] data = 0;
    reg [3:0] strobes = 0;

    wire take_write = state == IDLE && awvalid && wvalid && !bvalid;
    wire take_read = state == IDLE && arvalid && !rvalid && !take_write;
    assign awready = take_write;
    assign wready = take_write;
    assign arready = take_read;
    assign bresp = 2'b00;
    assign rresp = 2'b00;

    wire ack;
    wire [7:0] byte_read;
    wire req = state == ASK && (!writing || strobes[lane]);
    wire next = state == ASK && !req || state == HEAR && ack;

    always @(posedge aclk) begin
        if (bready) bvalid <= 0;
        if (rready) rvalid <= 0;
        if (take_write || take_read) begin
            writing <= take_write;
            base <= take_write ? awaddr[23:2] : araddr[23:2];
            data <= wdata;
            strobes <= wstrb;
            lane <= 0;
            state <= ASK;
        end
        if (req) state <= HEAR;
        if (next) begin
            if (!writing) rdata[8*lane+:8] <= byte_read;
            lane <= lane + 1'b1;
            state <= lane == 3 ? IDLE : ASK;
            if (lane == 3) begin
                bvalid <= writing;
                rvalid <= !writing;
            end
        end
        if (!aresetn) begin
            state <= IDLE;
            bvalid <= 0;
            rvalid <= 0;
        end
    end

    overlay #(.N(N), .ACTIVATIONS(ACTIVATIONS), .BIASES(BIASES), .PROGRAM(PROGRAM), .WEIGHTS(WEIGHTS), .TABLES(TABLES), .UUID(UUID)) overlay (
        .clk(aclk), .req(req), .we(writing), .addr({base, lane}), .wdata(data[8*lane+:8]), .ack(ack),
        .rdata(byte_read), .busy(busy));

    initial begin
        bvalid = 0;
        rvalid = 0;
        rdata = 0;
    end
endmodule
