// Command controlplane is etcd, kube-apiserver, kube-controller-manager and kubectl in one program that acts by the name it is
// called by, as busybox does.
//
// The Kubernetes project publishes its programs for download, but everything they are made of is in the Go module proxy. Building
// them from there needs nothing but a Go compiler, and one program instead of four shares what they have in common: 168 MB
// instead of 330 MB.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
)

func main() {
	switch name := filepath.Base(os.Args[0]); name {
	case "etcd":
		etcdmain.Main(os.Args)
	case "kube-apiserver":
		serve(apiserver.NewAPIServerCommand())
	case "kube-controller-manager":
		serve(controllermanager.NewControllerManagerCommand())
	case "kubectl":
		// kubectl prints its errors itself and exits with their code, as in its own main.
		if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
			kubectlutil.CheckErr(err)
		}
	default:
		fmt.Fprintf(os.Stderr, "%s: call me etcd, kube-apiserver, kube-controller-manager or kubectl (by a symbolic link)\n", name)
		os.Exit(2)
	}
}

// serve runs a server's command to its end and exits with its code.
func serve(command *cobra.Command) {
	os.Exit(cli.Run(command))
}
