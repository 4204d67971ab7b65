package main

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	atelier "github.com/atelier-edge/atelier"
)

// collectFlags say what 'atelier deploy' was asked to collect; empty ones change nothing.
type collectFlags struct {
	share, budget, rate string
	mask                []string
}

func (f *collectFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.share, "collect", "", "record this share of the requests, 0.05 for one in twenty; 0 ends it")
	flags.StringSliceVar(&f.mask, "collect-mask", nil, "values that are never recorded: inputs.NAME, outputs.NAME, inputs.*; of scripts also inputs.NAME.FIELD (\"\" for none)")
	flags.StringVar(&f.budget, "collect-budget", "", "disk that records may take on a device while they wait, such as 100MB (default 64MiB)")
	flags.StringVar(&f.rate, "collect-rate", "", "bytes a second that a device sends of them, such as 1MB (default 256KiB)")
}

// change returns what is collected from now on, nil where the flags say nothing.
func (f *collectFlags) change(now *atelier.Collection) (*atelier.Collection, error) {
	if f.share == "" && f.mask == nil && f.budget == "" && f.rate == "" {
		return nil, nil
	}
	next := atelier.Collection{}
	if now != nil {
		next = *now
	} else if f.share == "" {
		return nil, errUsage{errors.New("nothing is collected yet, and nothing says which share of the requests shall be\n  Pass --collect 0.05 with it")}
	}
	if f.share != "" {
		share, err := strconv.ParseFloat(strings.TrimSpace(f.share), 64)
		if err != nil || !(share >= 0 && share <= 1) || math.IsNaN(share) {
			return nil, errUsage{fmt.Errorf("--collect is %q, a number from 0 to 1 was expected", f.share)}
		}
		next.Share = share
	}
	if f.mask != nil {
		next.Mask = f.mask
	}
	for _, size := range []struct {
		text string
		to   *int64
	}{{f.budget, &next.Disk}, {strings.TrimSuffix(f.rate, "/s"), &next.Rate}} {
		if size.text == "" {
			continue
		}
		n, err := parseBytes(size.text)
		if err != nil {
			return nil, err
		}
		*size.to = n
	}
	return &next, nil
}

// collected tells people what is collected.
func collected(c *atelier.Collection) string {
	if !c.On() {
		return "nothing any more"
	}
	text := fmt.Sprintf("%s%% of the requests, at most %s on a device and %s/s", strconv.FormatFloat(c.Share*100, 'g', 4, 64),
		atelier.FormatBytes(c.Disk), atelier.FormatBytes(c.Rate))
	if len(c.Mask) > 0 {
		text += ", without " + strings.Join(c.Mask, ", ")
	}
	return text
}
