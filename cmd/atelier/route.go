package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"

	atelier "github.com/atelier-edge/atelier"
)

// routeFlags say which routes 'atelier deploy' was asked for; without any, they stay.
type routeFlags struct {
	routes []string
	file   string
	ttl    time.Duration
}

func (f *routeFlags) register(flags *pflag.FlagSet) {
	flags.StringArrayVar(&f.routes, "route", nil, "where messages of modules go, 'FROM /modules/a/outputs/x INTO /modules/b/inputs/y' or 'INTO upstream'; replaces all routes, may be repeated (\"\" for none)")
	flags.StringVar(&f.file, "routes", "", "a `FILE` with routes, one a line; # begins a comment")
	flags.DurationVar(&f.ttl, "ttl", 0, "how long a message may wait on these routes (default 2h)")
}

// change returns the routes from now on, nil where the flags say nothing.
func (f *routeFlags) change() (*[]atelier.MessageRoute, error) {
	if f.routes == nil && f.file == "" {
		if f.ttl != 0 {
			return nil, errUsage{errors.New("--ttl is for routes, and none are given\n  Pass --route or --routes with it")}
		}
		return nil, nil
	}
	if f.ttl < 0 || f.ttl > 0 && f.ttl < time.Second || f.ttl > atelier.MaxMessageTTL {
		return nil, errUsage{fmt.Errorf("--ttl is %v, 1s to %v was expected", f.ttl, atelier.MaxMessageTTL)}
	}
	lines := f.routes
	if f.file != "" {
		b, err := os.ReadFile(f.file)
		if err != nil {
			return nil, errUsage{err}
		}
		lines = append(lines, strings.Split(string(b), "\n")...)
	}
	all := []atelier.MessageRoute{}
	for i, line := range lines {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		p, err := atelier.ParseRoute(line)
		if err != nil {
			if i >= len(f.routes) {
				return nil, fmt.Errorf("%s, line %d: %w", f.file, i-len(f.routes)+1, err)
			}
			return nil, err
		}
		all = append(all, atelier.MessageRoute{Route: p.String(), TTL: int64(f.ttl / time.Second)})
	}
	return &all, nil
}

// routeLines tells people of a deployment's routes.
func routeLines(routes []atelier.MessageRoute) (lines [][]string) {
	for i, r := range routes {
		head := ""
		if i == 0 {
			head = "Routes:"
		}
		lines = append(lines, []string{head, fmt.Sprintf("%s, for %v", r.Route, r.Live())})
	}
	return lines
}
