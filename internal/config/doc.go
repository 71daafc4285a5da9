// Package config turns flags, environment variables and one YAML file into one checked Config.
//
// A flag beats GANTRY_… in the environment, which beats the file, which beats the default. An
// unknown key is an error that names the nearest right one, and every error says what was wrong,
// where, and what would be right. All problems are reported at once. The package decides nothing
// about the machine: host name and addresses come in through Options. Start at Load.
package config
