<#
.SYNOPSIS
    Builds ringport on Windows, runs every test and the benchmark, and writes a report.

.DESCRIPTION
    In the folder of the repository:

        powershell -ExecutionPolicy Bypass -File scripts\windows.ps1

    or double-click scripts\windows.cmd. It needs Rust by rustup with its usual compiler for Windows (MSVC), installs
    nothing, opens no port but on the loopback, and takes about 15 minutes. The report is one Markdown file, the full
    output of every step lies beside it. Its exit code is 0 when every step passed.

    NOTE: this script was written on Linux and has never been run. Its commands run there, under Wine where they are
    Windows programs; the PowerShell around them has only been parsed.

.PARAMETER Report
    Where the report goes. The output of the steps goes to a folder of the same name.

.PARAMETER Seconds
    How long each cell of the benchmark measures.

.PARAMETER Churn
    How many connections the longest test makes one after another.
#>
param(
    [string]$Report = "ringport-windows.md",
    [int]$Seconds = 5,
    [int]$Churn = 100000
)

Set-Location (Split-Path -Parent $PSScriptRoot)
$logs = [IO.Path]::ChangeExtension($Report, $null).TrimEnd(".") + "-logs"
New-Item -ItemType Directory -Force -Path $logs | Out-Null
$lines = New-Object System.Collections.Generic.List[string]
$failed = New-Object System.Collections.Generic.List[string]

function Add-Block([string]$title, $text) {
    $lines.Add("")
    $lines.Add("## $title")
    $lines.Add("")
    $lines.Add('```text')
    foreach ($line in $text) { $lines.Add("$line") }
    $lines.Add('```')
}

# Runs a command by way of cmd, which keeps what a program writes to standard error from being taken for a failure of
# this script. Says whether it passed.
function Invoke-Step([string]$name, [string]$command) {
    Write-Host "== $name"
    $log = Join-Path $logs "$name.log"
    $begin = Get-Date
    cmd /c "$command > `"$log`" 2>&1"
    $code = $LASTEXITCODE
    $took = [int]((Get-Date) - $begin).TotalSeconds
    if ($code -eq 0) {
        Write-Host "   passed in $took s"
        $lines.Add("- ${name}: passed in $took s")
        return $true
    }
    Write-Host "   FAILED after $took s (exit code $code); see $log"
    $lines.Add("- ${name}: **failed** after $took s, exit code $code")
    $failed.Add($name)
    return $false
}

function Read-Log([string]$name) {
    $log = Join-Path $logs "$name.log"
    if (Test-Path $log) { Get-Content $log } else { @() }
}

if (-not (Get-Command cargo -ErrorAction SilentlyContinue)) {
    Write-Host "cargo is missing: install Rust from https://rustup.rs with its usual options, then run this again."
    exit 1
}

$lines.Add("# ringport on Windows")
$lines.Add("")
$lines.Add("$(Get-Date -Format 'yyyy-MM-dd HH:mm')")
$lines.Add("")

$engine = "target\release\ringport.exe"
$built = Invoke-Step "build" "cargo build --release -p ringport-cli"
[void](Invoke-Step "test" "cargo test --workspace --no-fail-fast")

# The suites above run rio over functions that stand in for the system's and are strict about their rules; these run it
# over the system's own. What is run of the program is always on the system's own.
$env:RINGPORT_REAL_RIO = "1"
[void](Invoke-Step "real-rio" "cargo test -p ringport-engine --test conformance --no-fail-fast -- rio")
[void](Invoke-Step "real-rio-sessions" "cargo test -p ringport --test sessions --no-fail-fast")
$env:RINGPORT_CHURN = "$Churn"
[void](Invoke-Step "churn" "cargo test -p ringport-engine --test conformance --no-fail-fast -- one_after_another --nocapture")
Remove-Item Env:RINGPORT_REAL_RIO
Remove-Item Env:RINGPORT_CHURN

$cells = @(
    @("bench-50x64", "--connections 50 --size 64"),
    @("bench-50x64-deep", "--connections 50 --size 64 --pipeline 16"),
    @("bench-50x16k", "--connections 50 --size 16k"),
    @("bench-1000x1k", "--connections 1000 --size 1k")
)
if ($built) {
    [void](Invoke-Step "engines" "$engine engines --json")
    foreach ($cell in $cells) {
        $options = "--engine all --no-progress --duration ${Seconds}s " + $cell[1]
        [void](Invoke-Step $cell[0] "$engine bench $options")
    }
}

$system = Get-CimInstance Win32_OperatingSystem
$processor = Get-CimInstance Win32_Processor | Select-Object -First 1
$computer = Get-CimInstance Win32_ComputerSystem
Add-Block "Machine" @(
    "$($system.Caption), version $($system.Version), $($system.OSArchitecture)",
    "$($processor.Name.Trim()), $($computer.NumberOfLogicalProcessors) logical processors",
    "$([int]($computer.TotalPhysicalMemory / 1048576)) MiB, $($computer.Manufacturer) $($computer.Model)",
    "$(rustc --version)"
)
Add-Block "Engines" (Read-Log "engines")
$summary = '^test result:|^failures:|FAILED|^skipped:|^    [a-z_:]+$'
Add-Block "Tests" (Read-Log "test" | Select-String -Pattern $summary)
Add-Block "Tests of rio on the system's own Registered I/O" (Read-Log "real-rio" | Select-String -Pattern $summary)
Add-Block "Tests of sessions on the same" (Read-Log "real-rio-sessions" | Select-String -Pattern $summary)
Add-Block "Connections one after another" (Read-Log "churn" | Select-String -Pattern 'connections:', $summary)
foreach ($cell in $cells) {
    Add-Block "Benchmark: $($cell[1])" (Read-Log $cell[0])
}

# Without a byte-order mark, which the oldest PowerShell would write.
$path = [IO.Path]::Combine((Get-Location).Path, $Report)
[IO.File]::WriteAllLines($path, $lines)
Write-Host "The report is $path"
if ($failed.Count -gt 0) {
    Write-Host "FAILED: $($failed -join ', ')"
    exit 1
}
exit 0
