package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"

	"github.com/atelier-edge/atelier/internal/boot"
)

// relayVerb makes this program a relay: bench relay ADDRESS SOCKET.
const relayVerb = "relay"

// startRelay starts, as a process of its own, what any program written in Go
// between a client and the model server takes at least: it passes bytes on and
// reads none of them. What the gateway takes beyond it is the gateway's own work.
func (w *world) startRelay(socket string) (*boot.Program, string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	address, err := boot.FreeAddress()
	if err != nil {
		return nil, "", err
	}
	p := &boot.Program{Path: self, Args: []string{relayVerb, address, socket}, Log: filepath.Join(w.dir, "relay.log")}
	return p, address, p.Start()
}

// relay passes bytes between each client of address and a connection of its own
// to socket, with as many processors as the gateway takes. It ends by a signal.
func relay(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: bench %s ADDRESS SOCKET", relayVerb)
	}
	runtime.GOMAXPROCS((runtime.NumCPU() + 3) / 4)
	listener, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	for {
		client, err := listener.Accept()
		if err != nil {
			return err
		}
		module, err := net.Dial("unix", args[1])
		if err != nil {
			return errors.Join(err, client.Close())
		}
		go pass(client, module)
		go pass(module, client)
	}
}

// pass copies until one side ends, and ends the other. Plain reads and writes
// stand here since io.Copy would splice, which is slower for small messages.
func pass(from, to net.Conn) {
	defer func() { _, _ = from.Close(), to.Close() }() // both are done with
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
