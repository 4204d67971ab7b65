// Package verilator puts the RTL behind simulated devices: a design becomes a process
// that Verilator made of it. It takes Verilator and a C++ compiler.
package verilator

import (
	"context"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/atelier-edge/atelier/fpga/board"
	"github.com/atelier-edge/atelier/fpga/rtl"
)

// Start returns what starts designs, for board.Options. It builds each once, below dir, which
// takes a minute; processes end with ctx.
func Start(ctx context.Context, dir string) func(board.Design) (board.Processor, error) {
	var mu sync.Mutex
	built := map[board.Design]string{}
	return func(d board.Design) (board.Processor, error) {
		mu.Lock()
		defer mu.Unlock()
		path := built[d]
		if path == "" {
			g := d.Geometry
			name := fmt.Sprintf("%s-%d-%d-%d-%d-%d", hex.EncodeToString(d.UUID[:]), g.Lanes, g.Activations, g.Biases, g.Program, g.Weights)
			var err error
			if path, err = rtl.Build(ctx, filepath.Join(dir, name), rtl.Design{Geometry: g, UUID: d.UUID}); err != nil {
				return nil, err
			}
			built[d] = path
		}
		return rtl.Start(ctx, path)
	}
}
