package main

import (
	"runtime"

	"github.com/spf13/cobra"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
)

func (a *app) runtimeCommand() *cobra.Command {
	var rt atelier.Runtime
	register := &cobra.Command{
		Use:   "register NAME VERSION FILE...",
		Short: "Register a runtime that devices get along with the models that need it",
		Long: `Register a runtime that devices get along with the models that need it, such as ONNX Runtime's shared library.

The first file is the one that is loaded or started. Runtimes belong to the hub, not to a workspace.`,
		Example: "  atelier runtime register onnxruntime 1.30.0 libonnxruntime.so.1 --arch amd64 --needs-glibc 2.28",
		Args:    between(3, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			files, err := localFiles(args[2:])
			if err != nil {
				return err
			}
			rt.Name, rt.Version, rt.Entry = args[0], args[1], files[0].file.Path
			if rt.Files, err = a.upload(cmd.Context(), cl, "", files); err != nil {
				return err
			}
			out, err := cl.RegisterRuntime(cmd.Context(), rt)
			if err != nil {
				return err
			}
			return a.print(out, func() table { return runtimeTable([]atelier.Runtime{out}) })
		},
	}
	register.Flags().StringVar(&rt.OS, "os", "linux", "operating system that it is for")
	register.Flags().StringVar(&rt.Arch, "arch", runtime.GOARCH, "architecture that it is for: amd64 or arm64")
	register.Flags().StringVar(&rt.NeedsGlibc, "needs-glibc", "", "oldest glibc that it runs with")
	list := &cobra.Command{
		Use: "list", Short: "List the runtimes", Aliases: []string{"ls"}, Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			all, err := client.Collect(cl.Runtimes(cmd.Context()))
			if err != nil {
				return err
			}
			return a.print(all, func() table { return runtimeTable(all) })
		},
	}
	remove := a.simple("delete ID", "Delete a runtime", "Deleted runtime %s.", (*client.Client).DeleteRuntime)
	return group("runtime", "Register what models need to run", register, list, remove)
}

func runtimeTable(all []atelier.Runtime) table {
	t := table{head: []string{"NAME", "VERSION", "PLATFORM", "SIZE", "NEEDS", "ID"}}
	for _, r := range all {
		var size int64
		for _, f := range r.Files {
			size += f.Size
		}
		needs := ""
		if r.NeedsGlibc != "" {
			needs = "glibc " + r.NeedsGlibc
		}
		t.add(r.Name, r.Version, r.OS+"/"+r.Arch, atelier.FormatBytes(size), needs, r.ID)
	}
	if len(all) == 0 {
		t.note = "There is no runtime yet; ONNX models need one: see 'atelier runtime register --help'."
	}
	return t
}
