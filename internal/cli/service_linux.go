package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"gantry.dev/gantry/internal/config"
	"gantry.dev/gantry/internal/durable"
	"gantry.dev/gantry/internal/lifecycle"
)

const (
	unitName = "gantry.service"
	unitPath = "/etc/systemd/system/" + unitName
)

// unitText is the systemd unit that runs command. KillMode=process leaves containers alone when the
// main process stops or is upgraded, and Delegate=yes lets it make control groups for them.
func unitText(command []string) string {
	quoted := make([]string, len(command))
	for i, word := range command {
		quoted[i] = quoteUnit(word)
	}
	return `[Unit]
Description=Gantry: a Kubernetes-compatible node
Documentation=https://gantry.dev
Wants=network-online.target
After=network-online.target

[Service]
Type=notify
ExecStart=` + strings.Join(quoted, " ") + `
KillMode=process
Delegate=yes
Restart=always
RestartSec=1
TimeoutStartSec=120
TimeoutStopSec=120
LimitNOFILE=1048576
LimitNPROC=infinity
TasksMax=infinity
OOMScoreAdjust=-999

[Install]
WantedBy=multi-user.target
`
}

// quoteUnit quotes a word for ExecStart (systemd.service(5), "Command lines"; systemd.unit(5) for %).
func quoteUnit(word string) string {
	word = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%", "$", "$$").Replace(word)
	if word == "" || strings.ContainsAny(word, " \t'\"\\;") {
		return `"` + word + `"`
	}
	return word
}

// upService installs the unit with the settings of this call and starts it.
func (a *app) upService(cmd *cobra.Command, c config.Config) error {
	if !lifecycle.SystemdRunning() {
		return errors.New("systemd does not run on this machine; use \"gantry up --detach\", and start that at boot by other means")
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	if err := durable.WriteFile(unitPath, []byte(unitText(append([]string{self, "up"}, serviceArgs(c)...))), 0o644); err != nil {
		return err
	}
	for _, args := range [][]string{{"daemon-reload"}, {"enable", unitName}, {"restart", unitName}} {
		if err := systemctl(cmd.Context(), args...); err != nil {
			return fmt.Errorf("%w; see \"journalctl -u %s -n 50\"", err, unitName)
		}
	}
	a.greet(c)
	return nil
}

// serviceArgs writes the effective settings as flags, so that the unit does not depend on the
// environment or folder of this call.
func serviceArgs(c config.Config) []string {
	var args []string
	add := func(key, value string) {
		if c.Given(key) {
			args = append(args, "--"+key+"="+value)
		}
	}
	args = append(args, "--"+config.KeyDataDir+"="+c.DataDir)
	add(config.KeyListen, c.Listen.String())
	add(config.KeyNodeIP, c.NodeIP.String())
	for _, san := range c.TLSSANs {
		args = append(args, "--"+config.KeyTLSSAN+"="+san)
	}
	for _, version := range slices.Sorted(maps.Keys(c.RuntimeConfig)) {
		args = append(args, "--"+config.KeyRuntimeConfig+"="+version+"="+c.RuntimeConfig[version])
	}
	add(config.KeyNodeName, c.NodeName)
	add(config.KeyLoadBalancer, c.LoadBalancer)
	add(config.KeyNetworkMode, c.NetworkMode)
	add(config.KeyPodCIDR, c.PodCIDR.String())
	add(config.KeyServiceCIDR, c.ServiceCIDR.String())
	add(config.KeyClusterDomain, c.ClusterDomain)
	add(config.KeyKubeconfig, c.Kubeconfig)
	add(config.KeyScheduler, c.SchedulerFile)
	add(config.KeyAgentPort, fmt.Sprint(c.AgentPort))
	add(config.KeyKubeletDir, c.KubeletDir)
	add(config.KeyManifests, c.Manifests)
	if len(c.UnsafeSysctls) > 0 {
		add(config.KeyUnsafeSysctls, strings.Join(c.UnsafeSysctls, ","))
		for _, language := range sortedKeys(c.BuildBases) {
			add(config.KeyBuildBase, language+"="+c.BuildBases[language])
		}
	}
	add(config.KeyNotReadySeconds, fmt.Sprint(c.Tolerations.NotReady))
	add(config.KeyUnreachableSeconds, fmt.Sprint(c.Tolerations.Unreachable))
	add(config.KeyLogLevel, strings.ToLower(c.LogLevel.String()))
	add(config.KeyLogFormat, c.LogFormat)
	addGateway(c, add)
	args = append(args, c.Node.Args()...)
	return args
}

// addGateway is the gateway's part of serviceArgs.
func addGateway(c config.Config, add func(key, value string)) {
	g := &c.Gateway
	add(config.KeyNoGateway, strconv.FormatBool(g.Off))
	add(config.KeyGatewayHTTPPort, strconv.Itoa(int(g.HTTPPort)))
	add(config.KeyGatewayHTTPSPort, strconv.Itoa(int(g.HTTPSPort)))
	for _, addr := range g.PublicAddresses {
		add(config.KeyPublicAddress, addr.String())
	}
	add(config.KeyACME, strconv.FormatBool(g.ACME.On))
	add(config.KeyACMEEmail, g.ACME.Email)
	add(config.KeyACMEDirectory, g.ACME.Directory)
	add(config.KeyACMECAFile, g.ACME.CAFile)
}

// stopService stops the unit until the next boot, if there is one.
func stopService(ctx context.Context) error {
	if _, err := os.Stat(unitPath); err != nil || !lifecycle.SystemdRunning() {
		return nil
	}
	return systemctl(ctx, "stop", unitName)
}

// removeService stops and removes the unit; it is fine when there is none.
func removeService(ctx context.Context) error {
	if _, err := os.Stat(unitPath); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	running := lifecycle.SystemdRunning()
	if running {
		if err := systemctl(ctx, "disable", "--now", unitName); err != nil {
			return err
		}
	}
	if err := os.Remove(unitPath); err != nil {
		return fmt.Errorf("remove the service: %w", err)
	}
	if running {
		return systemctl(ctx, "daemon-reload")
	}
	return nil
}

func systemctl(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
