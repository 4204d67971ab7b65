package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
)

func (a *app) dataCommand() *cobra.Command {
	list := &cobra.Command{
		Use: "list [ENDPOINT]", Short: "List the data files of an endpoint, or of all", Aliases: []string{"ls"}, Args: between(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			endpoint := ""
			if len(args) > 0 {
				endpoint = args[0]
			}
			all, err := client.Collect(cl.DataFiles(cmd.Context(), ws, endpoint))
			if err != nil {
				return err
			}
			return a.print(all, func() table { return dataTable(all) })
		},
	}
	var dir string
	get := &cobra.Command{
		Use: "get ENDPOINT", Short: "Download the data files of an endpoint", Args: exactly(1),
		Long: `Download the data files of an endpoint. They are laid out in the directory as DATE below VERSION below ENDPOINT; those that are
there already are not fetched again.`,
		Example: `  atelier data get digits
  duckdb -c "select time, inputs, outputs from 'data/digits/*/*/*.parquet'"`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.getData(cmd.Context(), args[0], dir) },
	}
	get.Flags().StringVar(&dir, "to", "data", "directory")
	flush := &cobra.Command{
		Use: "flush", Short: "Make data files of the records that came until now", Args: exactly(0),
		Long: "Make data files of the records that came until now, which they would become by themselves within minutes.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			return cl.FlushData(cmd.Context(), ws)
		},
	}
	var before string
	remove := &cobra.Command{
		Use: "delete ENDPOINT", Short: "Delete the data files of an endpoint", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, ws, err := a.open()
			if err != nil {
				return err
			}
			n, err := cl.DeleteData(cmd.Context(), ws, args[0], before)
			if err != nil {
				return err
			}
			a.say("Deleted %d data files of %s.", n, args[0])
			return nil
		},
	}
	remove.Flags().StringVar(&before, "before", "", "only those from before this `DATE`, 2006-01-02")
	return group("data", "Look after the data that endpoints collect; 'atelier deploy --collect' turns that on", list, get, flush, remove)
}

func dataTable(all []atelier.DataFile) table {
	t := table{head: []string{"FILE", "MODEL", "RECORDS", "SIZE", "FROM", "TO"}}
	const form = "2006-01-02 15:04:05"
	for _, f := range all {
		t.add(f.Name, fmt.Sprintf("%s:%d", f.Model, f.Version), strconv.Itoa(f.Records), atelier.FormatBytes(f.Size),
			f.First.UTC().Format(form), f.Last.UTC().Format(form))
	}
	if len(all) == 0 {
		t.note = "There are no data files; 'atelier deploy MODEL --collect 0.05' collects data, and a file is there some minutes later."
	}
	return t
}

// getData downloads the files that are not there yet.
func (a *app) getData(ctx context.Context, endpoint, dir string) error {
	cl, ws, err := a.open()
	if err != nil {
		return err
	}
	all, err := client.Collect(cl.DataFiles(ctx, ws, endpoint))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir) // a hub cannot name a place outside
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }() // only a directory
	fetched := 0
	for _, f := range all {
		path := filepath.FromSlash(f.Name)
		if info, err := root.Stat(path); err == nil && info.Size() == f.Size {
			continue
		}
		if err := getDataFile(ctx, cl, ws, f, root, path); err != nil {
			return err
		}
		fetched++
	}
	a.say("%d data files of %s are in %s, %d of them new.", len(all), endpoint, dir, fetched)
	return nil
}

// getDataFile downloads a file under another name first: under its own it is whole.
func getDataFile(ctx context.Context, cl *client.Client, ws string, f atelier.DataFile, root *os.Root, path string) (err error) {
	from, err := cl.DataFile(ctx, ws, f)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	if err := root.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	part := path + ".part"
	to, err := root.Create(part)
	if err != nil {
		return err
	}
	hash := sha256.New()
	_, err = io.Copy(io.MultiWriter(to, hash), from)
	if err = errors.Join(err, to.Close()); err == nil && atelier.DigestFrom(hash) != f.Digest {
		err = atelier.Errorf(atelier.Corrupt, "%s came with the digest %s, expected was %s", f.Name, atelier.DigestFrom(hash), f.Digest).
			WithRemedy("Try again; if it repeats, the hub's storage is damaged.")
	}
	if err != nil {
		return errors.Join(err, root.Remove(part))
	}
	return root.Rename(part, path)
}
