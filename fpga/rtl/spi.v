// SPI, mode 0, most significant bit first. A transaction is a byte with the
// operation, three of the address, the highest first, and then data: 02 writes the bytes
// that follow; 03 reads, after one byte that means nothing, for as long as the clock goes on. The
// address goes up by itself. SCK is sampled and may be an eighth of clk at most.
module spi (
    input wire clk,
    input wire sck,
    input wire cs_n,
    input wire mosi,
    output wire miso,
    output reg req,
    output reg we,
    output reg [23:0] addr,
    output reg [7:0] wdata,
    input wire ack,
    input wire [7:0] rdata
);
    reg [2:0] sck_s = 0;
    reg [1:0] cs_s = 2'b11, mosi_s = 0;
    wire rise = sck_s[2:1] == 2'b01;
    wire fall = sck_s[2:1] == 2'b10;
    wire selected = !cs_s[1];

    reg [2:0] bits = 0;
    reg [2:0] phase = 0;            // 0 operation, 1 to 3 address, 4 data, 7 nothing
    reg [7:0] in = 0, out = 0, fetched = 0;
    reg reading = 0;
    wire [7:0] shifted = {in[6:0], mosi_s[1]};
    assign miso = out[7];

    always @(posedge clk) begin
        sck_s <= {sck_s[1:0], sck};
        cs_s <= {cs_s[0], cs_n};
        mosi_s <= {mosi_s[0], mosi};
        req <= 0;
        if (ack) begin
            fetched <= rdata;
            addr <= addr + 1'b1;
        end
        if (!selected) begin
            bits <= 0;
            phase <= 0;
        end else if (rise) begin
            in <= shifted;
            bits <= bits + 1'b1;
            if (bits == 7) case (phase)
                0: begin
                    reading <= shifted == 8'h03;
                    phase <= shifted == 8'h03 || shifted == 8'h02 ? 1 : 7; // 7 waits for the end
                end
                1: begin
                    addr[23:16] <= shifted;
                    phase <= 2;
                end
                2: begin
                    addr[15:8] <= shifted;
                    phase <= 3;
                end
                3: begin
                    addr[7:0] <= shifted;
                    phase <= 4;
                    we <= !reading;
                end
                4: begin
                    wdata <= shifted;
                    req <= !reading;
                end
                default: ;
            endcase
        end else if (fall) begin
            // A byte begins: the one that was fetched goes out, the next is fetched.
            out <= bits == 0 ? fetched : {out[6:0], 1'b0};
            if (bits == 0 && phase == 4) req <= reading;
        end
    end

    initial begin
        req = 0;
        we = 0;
        addr = 0;
        wdata = 0;
    end
endmodule

// The overlay behind SPI pins, as it is built for iCE40.
module overlay_spi #(
    parameter N = 8,
    parameter ACTIVATIONS = 10,
    parameter BIASES = 8,
    parameter PROGRAM = 6,
    parameter WEIGHTS = 10,
    parameter TABLES = 9,
    parameter [127:0] UUID = 128'h0
) (
    input wire clk,
    input wire sck,
    input wire cs_n,
    input wire mosi,
    output wire miso,
    output wire busy
);
    wire req, we, ack;
    wire [23:0] addr;
    wire [7:0] wdata, rdata;
    spi spi (.clk(clk), .sck(sck), .cs_n(cs_n), .mosi(mosi), .miso(miso), .req(req), .we(we), .addr(addr),
        .wdata(wdata), .ack(ack), .rdata(rdata));
    overlay #(.N(N), .ACTIVATIONS(ACTIVATIONS), .BIASES(BIASES), .PROGRAM(PROGRAM), .WEIGHTS(WEIGHTS), .TABLES(TABLES), .UUID(UUID)) overlay (
        .clk(clk), .req(req), .we(we), .addr(addr), .wdata(wdata), .ack(ack), .rdata(rdata), .busy(busy));
endmodule
