@powershell -NoProfile -ExecutionPolicy Bypass -File "%~dp0windows.ps1" %*
