package agent

import (
	"context"
	"errors"
	"time"

	"github.com/atelier-edge/atelier/agent/config"
	"github.com/atelier-edge/atelier/agent/gateway"
	"github.com/atelier-edge/atelier/agent/router"
	"github.com/atelier-edge/atelier/targets"
)

// endGrace is how long a module may take to end.
const endGrace = 10 * time.Second

// Down ends the modules and the gateway that an agent left running. They come up
// again with the next Run. InUse while an agent runs: it would start them again.
func Down(ctx context.Context, c config.Config, kinds func(Places) ([]targets.Target, error)) error {
	p, err := NewPlaces(c)
	if err != nil {
		return err
	}
	unlock, err := lock(p.State)
	if err != nil {
		return err
	}
	defer unlock()
	list, err := kinds(p)
	if err != nil {
		return err
	}
	failed := errors.Join(gateway.Stop(ctx, gateway.NewClient(gateway.Socket(p.Run))), router.Stop(ctx, router.NewClient(router.Socket(p.Run))))
	for _, t := range list {
		instances, err := t.List(ctx)
		failed = errors.Join(failed, err)
		for _, i := range instances {
			failed = errors.Join(failed, t.Stop(ctx, i.ID, endGrace))
		}
	}
	return failed
}
