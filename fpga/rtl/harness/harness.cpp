// Drives a simulated overlay by commands on standard input; rtl.Simulator speaks with
// it. FRONT says which pins there are: 0 the bus of bytes, 1 SPI, 2 AXI4-Lite.
//
//   W address(u32) length(u32) bytes    writes
//   R address(u32) length(u32)          reads; answers with the bytes
//   P                                   waits until the processor is idle; answers 0, or 1 when it does not become so
//   C                                   answers with the cycles of the clock so far, u64
#include "Vdut.h"
#include "verilated.h"
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unistd.h>

#ifndef DIVIDER
#define DIVIDER 8 // of the clock, for SCK
#endif

double sc_time_stamp() { return 0; }

static Vdut *dut;
static uint64_t cycles;

static void clock_once() {
#if FRONT == 2
    dut->aclk = 0; dut->eval(); dut->aclk = 1; dut->eval();
#else
    dut->clk = 0; dut->eval(); dut->clk = 1; dut->eval();
#endif
    cycles++;
}

[[noreturn]] static void fail(const char *why) {
    fprintf(stderr, "%s\n", why);
    exit(1);
}

#if FRONT == 0
static uint8_t request(bool we, uint32_t address, uint8_t value) {
    dut->req = 1; dut->we = we; dut->addr = address; dut->wdata = value;
    clock_once();
    dut->req = 0;
    for (int i = 0; i < 64; i++) {
        if (dut->ack) return dut->rdata;
        clock_once();
    }
    fail("the bus does not answer");
}
static void write_bytes(uint32_t at, const uint8_t *b, uint32_t n) { while (n--) request(true, at++, *b++); }
static void read_bytes(uint32_t at, uint8_t *b, uint32_t n) { while (n--) *b++ = request(false, at++, 0); }
static void reset() {}
#elif FRONT == 1
static uint8_t exchange(uint8_t out) {
    uint8_t in = 0;
    for (int bit = 7; bit >= 0; bit--) {
        dut->mosi = out >> bit & 1;
        for (int i = 0; i < DIVIDER / 2; i++) clock_once();
        in = in << 1 | (dut->miso & 1); // the host samples as the clock rises
        dut->sck = 1;
        for (int i = 0; i < DIVIDER / 2; i++) clock_once();
        dut->sck = 0;
    }
    return in;
}
static void begin(uint8_t operation, uint32_t at) {
    dut->cs_n = 0;
    exchange(operation); exchange(at >> 16); exchange(at >> 8); exchange(at);
}
static void end() {
    for (int i = 0; i < DIVIDER; i++) clock_once();
    dut->cs_n = 1;
    for (int i = 0; i < DIVIDER; i++) clock_once();
}
static void write_bytes(uint32_t at, const uint8_t *b, uint32_t n) {
    begin(2, at);
    while (n--) exchange(*b++);
    end();
}
static void read_bytes(uint32_t at, uint8_t *b, uint32_t n) {
    begin(3, at);
    exchange(0);
    while (n--) *b++ = exchange(0);
    end();
}
static void reset() {
    dut->cs_n = 1; dut->sck = 0; dut->mosi = 0;
    for (int i = 0; i < 32; i++) clock_once();
}
#else
static void axi_write(uint32_t at, uint32_t value, uint8_t strobes) {
    dut->awaddr = at; dut->awvalid = 1; dut->wdata = value; dut->wstrb = strobes; dut->wvalid = 1; dut->bready = 1;
    for (int i = 0; i < 256; i++) {
        dut->aclk = 0; dut->eval();
        bool taken = dut->awvalid && dut->awready, answered = dut->bvalid;
        clock_once();
        if (taken) dut->awvalid = dut->wvalid = 0;
        if (answered) return;
    }
    fail("AXI does not answer a write");
}
static uint32_t axi_read(uint32_t at) {
    dut->araddr = at; dut->arvalid = 1; dut->rready = 1;
    for (int i = 0; i < 256; i++) {
        dut->aclk = 0; dut->eval();
        bool taken = dut->arvalid && dut->arready, answered = dut->rvalid;
        uint32_t value = dut->rdata;
        clock_once();
        if (taken) dut->arvalid = 0;
        if (answered) return value;
    }
    fail("AXI does not answer a read");
}
static void write_bytes(uint32_t at, const uint8_t *b, uint32_t n) {
    while (n) {
        uint32_t value = 0; uint8_t strobes = 0;
        uint32_t word = at & ~3u;
        while (n && (at & ~3u) == word) {
            value |= (uint32_t)*b++ << 8 * (at & 3);
            strobes |= 1 << (at & 3);
            at++; n--;
        }
        axi_write(word, value, strobes);
    }
}
static void read_bytes(uint32_t at, uint8_t *b, uint32_t n) {
    while (n) {
        uint32_t word = at & ~3u, value = axi_read(word);
        while (n && (at & ~3u) == word) { *b++ = value >> 8 * (at & 3); at++; n--; }
    }
}
static void reset() {
    dut->aresetn = 0; clock_once(); clock_once();
    dut->aresetn = 1; clock_once();
}
#endif

static uint8_t input[1 << 16], output[1 << 16];
static size_t input_at, input_end, output_end;

static void flush() {
    for (size_t at = 0; at < output_end;) {
        ssize_t n = write(1, output + at, output_end - at);
        if (n <= 0) exit(0); // nobody listens any more
        at += n;
    }
    output_end = 0;
}
static int next_byte() {
    if (input_at == input_end) {
        flush();
        ssize_t n = read(0, input, sizeof input);
        if (n <= 0) return -1;
        input_at = 0; input_end = n;
    }
    return input[input_at++];
}
static uint32_t next_u32() {
    uint32_t v = 0;
    for (int i = 0; i < 4; i++) {
        int b = next_byte();
        if (b < 0) fail("a command ends early");
        v |= (uint32_t)b << 8 * i;
    }
    return v;
}
static void answer(const uint8_t *b, size_t n) {
    while (n--) {
        if (output_end == sizeof output) flush();
        output[output_end++] = *b++;
    }
}

int main(int argc, char **argv) {
    Verilated::commandArgs(argc, argv);
    dut = new Vdut;
    reset();
    static uint8_t buffer[1 << 20];
    for (int op; (op = next_byte()) >= 0;) {
        if (op == 'W' || op == 'R') {
            uint32_t at = next_u32(), n = next_u32();
            if (n > sizeof buffer) fail("a command is too long");
            if (op == 'W') {
                for (uint32_t i = 0; i < n; i++) buffer[i] = next_byte();
                write_bytes(at, buffer, n);
            } else {
                read_bytes(at, buffer, n);
                answer(buffer, n);
            }
        } else if (op == 'P') {
            uint8_t late = 1;
            for (int i = 0; i < 4; i++) clock_once(); // until a start is seen
            for (uint64_t i = 0; i < (1ull << 24) && late; i++) {
                if (!dut->busy) late = 0; else clock_once();
            }
            answer(&late, 1);
        } else if (op == 'C') {
            uint8_t b[8];
            for (int i = 0; i < 8; i++) b[i] = cycles >> 8 * i;
            answer(b, 8);
        } else fail("unknown command");
    }
    flush();
    return 0;
}
