"Files of other houses, written here as their programs write them: testers, loggers, summary tables, spreadsheets; and what is refused, with its sentence."
import base64, io, json, subprocess, zlib
import numpy as np
import pandas as pd
import pytest
from battnb.core import InputError
from battnb.cyclers import cycles_from_file, is_raw
from battnb.data import read_cycles
from test_cyclers import CAPS, CELL, chg, chg_cycle, comma, dis, dis_cycle, hms, lines, net, step_ah

# ---------------------------------------------------------------- time series, as each program exports them
# Layouts after genuine exports: column titles, preambles, units, number formats, encodings and quirks are theirs; the numbers are those of a small cell.

T = lambda s: pd.Timestamp('2026-03-01 08:00') + pd.Timedelta(seconds=s)
word = lambda charge, discharge, rest: dict(C=charge, D=discharge, R=rest)
step_c, step_d = (pd.Series(step_ah*m).groupby(CELL.step).cumsum().to_numpy() for m in (CELL.i > 0, CELL.i < 0))
RAW = {}
RAW['basytec_de']=(comma(lines('~Time[h]\tDataSet\tt-Step[h]\tt-Set[h]\tt-Cyc[h]\tLine\tCommand\tU[V]\tI[A]\tP[W]\tAh[Ah]\tAh-Cyc-Charge\tAh-Cyc-Discharge\tAh-Step\tWh[Wh]\tT1[°C]\tR-AC\tR-DC\tLevel\tCyc-Count\tCount\tState',
  lambda k,r:f"{r.t/3600:.8f}\t{k+1}\t{r.step_t/3600:.8f}\t{r.t/3600:.8f}\t0\t{r.step}\t{word('Charge','Discharge','Pause')[r.state]}\t{r.v:.5f}\t{r.i:.5f}\t{r.i*r.v:.4f}\t{net[k]:.6f}\t{chg_cycle[k]:.6f}\t{dis_cycle[k]:.6f}\t{r.ah:.6f}\t0\t25.48\t0\t0\t1\t{r.cycle}\t1\t1",
  '~Resultfile from Basytec Battery Test System\n~Date and Time of Data Converting: 07.07.2023 10:55:58\n~\n~Name of Test: test\n~Battery: cell\n~Testplan: plan.pln\n~Testchannel: CH01\n~\n')).encode('latin-1'),'basytec')
RAW['basytec_tiny']=(lines('~Time[s]\t~U[V]\t~I[A]',lambda k,r:f'{r.t}\t{r.v:.4f}\t{r.i}','Resultfile from Basytec Battery Test System\n').encode(),'basytec')
RAW['novonix_real']=(lines('Date and Time,Cycle Number,Step Type,Run Time (h),Step Time (h),Current (A),Potential (V),Capacity (Ah),Temperature (°C),Circuit Temperature (°C),Energy (Wh),dVdt (V/h),dIdt (A/h),Step Number,Step position,Power(W)',
  lambda k,r:f"{T(r.t)},{r.cycle},{dict(C=7,D=8,R=0)[r.state]},{r.t/3600:.7f},{r.step_t/3600:.7f},{r.i},{r.v:.8f},{net[k]:.8f},24.6,25.2,0,0,0,{r.step},1,0",
  '[Summary]\nNovonix UHPC data file\nNovonix\nChannel: 01\nCell: sample_cell.csv\nSerial Number: \nMass (g): 1.000\nCapacity (Ah): 5\nVersion: 2.13.0\n[End Summary]\n[Protocol]\n{}\n[End Protocol]\n[Data]\n').encode(),'novonix')
RAW['maccor_csv']=(lines('Rec,Cycle C,Step,Test Time (sec),Step Time (sec),Capacity,Energy,Current,Voltage,DPT Time,Temp 1',
  lambda k,r:f"{k+1},{r.cycle},{r.step},{r.t:.4f},{r.step_t:.4f},{r.ah:.6f},0,{abs(r.i)},{r.v:.5f},{T(r.t):%d-%b-%y %I:%M:%S %p},22.2591","Today's Date ,28-Nov-23\nDate of Test:,23-Nov-23 3:56:08 PM\n").encode(),'maccor')
aux=''.join(f'\tAux #{n}\t Units' for n in range(1,9)); auxv='\t-2501.7\t C  '*8
RAW['maccor_txt']=(lines(f'Rec#\tCyc#\tStep\tTestTime\tStepTime\tAmp-hr\tWatt-hr\tAmps\tVolts\tState\tES\tDPt Time\tACImp/Ohms\tDCIR/Ohms{aux}\tVAR1\tVAR2\t',
  lambda k,r:f"{k+1}\t{r.cycle-1}\t{r.step}\t  {int(r.t//86400)}d {int(r.t%86400//3600):02d}:{int(r.t%3600//60):02d}:{r.t%60:g}\t  0d 00:00:{r.step_t:g}\t{r.ah:.6f}\t0.0\t{abs(r.i):.5f}\t{r.v:.5f}\t{r.state}\t1\t{T(r.t):%m/%d/%Y %H:%M:%S}\t0.0\t0.0{auxv}\t0.0\t0.0\t",
  "Today's Date:\t14 December 2020\tDate of Test:\t11 December 2020, 12:22:12 PM\nFilename:\tM50\tTester Channel:\t1\nProcedure:\tM50_Validation.000\tDescription:\t\n").encode(),'maccor')
RAW['pec']=(lines('Test,Cell,Rack,Shelf,Position,Cell ID,Step,Instruction Name,Cycle,Total Time (Hours in hh:mm:ss.xxx),Load On Time (Hours in hh:mm:ss.xxx),Step Time (Seconds),Cycle Charge Time (Hours in hh:mm:ss.xxx),Cycle Discharge Time (Hours in hh:mm:ss.xxx),Real Time,Position Start Time,Voltage (V),Current (A),Charge Capacity (mAh),Discharge Capacity (mAh),Charge Energy (mWh),Discharge Energy (mWh),ReasonCode,Internal Resistance 1 (mOhm),Temp (°C),Station Temperature (°C),',
  lambda k,r:f"25205,1,ACT4,014,1,345626_9356111_33_6,{r.step},{word('Charge','Discharge','Idle')[r.state]},{r.cycle-1},{hms(r.t)},00:00:00.000,{r.step_t},00:00:00.000,00:00:00.000,{T(r.t):%m/%d/%Y %H:%M:%S},01/08/2026 17:45:08,{r.v:.7f},{r.i},{step_c[k]*1000:.4f},{step_d[k]*1000:.4f},0,0,30,,19.26,,",
  'Request Year:,2026\nTest:,25205\nTest Description:,\nTestRegime CellSize:,1500 mAh\nNumber Of Cells:,1\nParameter names:,C-Rate (mAh),Mass (kg),Peak power (W)\nParameter values:,64000,1.161,500\nStart Time:,01/08/2026 17:40:39\nOperator Instructions:,\n').encode('utf-8'),'pec')
RAW['neware_uio']=(lines('DataPoint,Cycle Index,Step Index,Step Type,Time,Cumulative Time,Current(A),Voltage(V),Capacity(Ah),Spec. Cap.(mAh/g),Chg. Cap.(Ah),Chg. Spec. Cap.(mAh/g),DChg. Cap.(Ah),DChg. Spec. Cap.(mAh/g),Energy(Wh),Date,Power(W),dQ/dV(mAh/V),Contact resistance(mO),Module start-stop switch',
  lambda k,r:f"{k+1},{r.cycle},{r.step},{word('CC Chg','CC DChg','Rest')[r.state]},{hms(r.step_t)[:8]},{hms(r.t)[:8]},{r.i:.8f},{r.v:.4f},{r.ah:.8f},0.00,{step_c[k]:.8f},0.00,{step_d[k]:.8f},0.00,0,{T(r.t)},0,0.0,0,Close").encode(),'neware')
RAW['neware_tiny']=(lines('Total Time(s),Voltage(V),Current(A),Time(s),Cycle,Step,Record,Charge Capacity(mAh),Discharge Capacity(mAh),Charge Energy(mWh),Discharge Energy(mWh)',
  lambda k,r:f'{r.t},{r.v:.4f},{r.i},{r.step_t},{r.cycle},{r.step},{k+1},{chg[k]*1000:.3f},{dis[k]*1000:.3f},0,0').encode(),'neware')
RAW['neware_cn']=(lines('记录序号,循环号,工步号,工步类型,时间,总时间,电流(mA),电压(V),容量(mAh),绝对时间',
  lambda k,r:f"{k+1},{r.cycle},{r.step},{word('恒流充电','恒流放电','搁置')[r.state]},{hms(r.step_t)},{hms(r.t)},{r.i*1000},{r.v:.4f},{r.ah*1000:.4f},{T(r.t)}").encode('gb18030'),'neware')
RAW['landt_channel']=(lines('test_time_s,voltage_v,current_a,step_time_s,cycle_index,step_index,channel_index',lambda k,r:f'{r.t},{r.v:.4f},{r.i},{r.step_t},{r.cycle},{r.step},{k+1}').encode(),'landt')
RAW['lanhe_cn']=(lines('记录\t测试时间\t步骤时间\t循环序号\t步骤序号\t电流/mA\t容量/mAh\t比容量/mAh/g\tSOC|DOD/%\t电压/V\t能量/mWh\t系统时间',
  lambda k,r:f'{k+1}\t{hms(r.t)}\t{hms(r.step_t)}\t{r.cycle}\t{r.step}\t{r.i*1000}\t{r.ah*1000:.4f}\t0\t0\t{r.v:.4f}\t0\t{T(r.t)}').encode('gb18030'),'landt')
RAW['digatron_hash']=(lines('Step,Status,Timestamp,Program Duration#s,Step Duration#s,Voltage#V,Current#A,AhCha#Ah,AhDch#Ah,AhStep#Ah,AhAccu#Ah,AhBal#Ah\nV\tV\tV\tV\tV\tV\tV\tV\tV\tV\tV\tV',
  lambda k,r:f"{r.step},{word('CC_CHG','CC_DCH','PAU')[r.state]},{T(r.t)},{r.t},{r.step_t},{r.v:.4f},{r.i},{chg[k]:.6f},{dis[k]:.6f},{r.ah:.6f},{net[k]:.6f},{net[k]:.6f}").encode(),'digatron')
RAW['digatron_mcmaster']=(lines('Time Stamp,Step,Status,Prog Time,Step Time,Cycle,Cycle Level,Procedure,Voltage,Current,Temperature,Capacity,WhAccu,Cnt,\n,,,,,,,,[V],[A],[C],[Ah],[Wh],[Cnt],',
  lambda k,r:f"{T(r.t):%m/%d/%Y %I:%M:%S %p},{r.step},{word('CHA','DCH','PAU')[r.state]},{hms(r.t)},{hms(r.step_t)},{r.cycle},0,CELL,{r.v:.5f},{r.i:.5f},24.9,{net[k]:.5f},0,{k},",
  'Digatron Power Electronics\nTest Name,,549_C20\nStart Time,,1/26/2018 5:36:19 PM\nCircuit,,18\nOperator,,x\n\n').encode(),'digatron')
mb='\n'.join(f'{n:20}'+''.join(f'{v:20}' for v in ('0','1','2')) for n in ('Ns','ctrl_type','Apply I/C','lim1_value','I Range'))
RAW['btlab_mb']=(('BT-Lab ASCII FILE\nNb header lines : 14                         \n\nModulo Bat\n\n\tTemperature max = 70.00 °C\nBattery capacity : 4.500 A.h\n'+mb+'\n\n'+lines('Ns changes\tNs\ttime/s\tEcell/V\tI/mA\t(Q-Qo)/mA.h\tEnergy charge/W.h\tEnergy discharge/W.h\tstep time/s\tQ discharge/mA.h\tQ charge/mA.h\tCapacity/mA.h\tcycle number\tP/W\tR/Ohm\tTemperature/°C\t',
  lambda k,r:f'0\t{r.step}\t{r.t:.15E}\t{r.v:.7E}\t{r.i*1000:.7E}\t{net[k]*1000:.15E}\t0\t0\t{r.step_t:.15E}\t{dis_cycle[k]*1000:.15E}\t{chg_cycle[k]*1000:.15E}\t0\t{r.cycle-1:.7E}\t0\t0\t2.2E+001')).encode('latin-1'),'biologic')
RAW['mpt_bare']=(lines('mode\tox/red\terror\tcontrol changes\tNs changes\tcounter inc.\tNs\tI Range\ttime/s\tcontrol/V/mA\tEcell/V\tI/mA\tdq/mA.h\t(Q-Qo)/mA.h\t|Energy|/W.h\tQ charge/discharge/mA.h\thalf cycle\tTemperature/°C\tCapacitance charge/µF\tx\tQ discharge/mA.h\tQ charge/mA.h\tCapacity/mA.h\tEfficiency/%\tcycle number\tP/W\tR/Ohm\t',
  lambda k,r:f'3\t0\t0\t1\t0\t0\t{r.step}\t115\t{r.t+281672:.15E}\t0.0\t{r.v:.7E}\t{r.i*1000:.7E}\t0\t{net[k]*1000:.8E}\t0\t0\t{2*r.cycle}\t24.4\t0\t0\t{dis[k]*1000:.8E}\t{chg[k]*1000:.8E}\t0\t0\t{r.cycle:.1E}\t0\t0').encode('latin-1'),'biologic')
RAW['arbin_new']=(lines('Data Point,Date Time,Test Time (s),Step Time (s),Cycle Index,Step Index,TC_Counter1,Current (A),Voltage (V),Power (W),Charge Capacity (Ah),Discharge Capacity (Ah),Charge Energy (Wh),Discharge Energy (Wh),Internal Resistance (Ohm),Aux_Temperature_1 (C)',
  lambda k,r:f"{k+1},\t{T(r.t):%m/%d/%Y %H:%M:%S}.000,{r.t},{r.step_t},{r.cycle},{r.step},0,{r.i},{r.v:.4f},0,{chg[k]:.6f},{dis[k]:.6f},0,0,0.025,25.1").encode(),'arbin')
RAW['cellpy_raw']=(lines('data_point;test_time;step_time;cycle_index;step_index;current;voltage;charge_capacity;discharge_capacity;date_time',lambda k,r:f'{k+1};{r.t};{r.step_t};{r.cycle};{r.step};{r.i};{r.v:.5f};{chg_cycle[k]:.6f};{dis_cycle[k]:.6f};{T(r.t)}').encode(),'arbin')
RAW['pyprobe_csv']=(lines('Date,Time [s],Cycle,Step,Event,Current [A],Voltage [V],Capacity [Ah]',lambda k,r:f'{T(r.t)},{r.t},{r.cycle-1},{r.step},{r.step},{r.i},{r.v:.5f},{net[k]:.6f}').encode(),'timeseries')
RAW['voltaiq']=(lines('h_datapoint_time,h_test_time,h_cycle,h_current,h_potential,h_charge_capacity,h_discharge_capacity,h_step_index',lambda k,r:f'{T(r.t)},{r.t},{r.cycle},{r.i},{r.v:.5f},{chg_cycle[k]:.6f},{dis_cycle[k]:.6f},{r.step}').encode(),'voltaiq')
RAW['gamry']=(('EXPLAIN\nTAG\tCHRONOP\nTITLE\tLABEL\tCyclic Charge Discharge\tTest &Identifier\nCURVE\tTABLE\t1000\n'+lines('\tPt\tT\tVf\tIm\tVu\tSig\tAch\tIERange\tOver\n\t#\ts\tV vs. Ref.\tA\tV\tV\tV\t#\tbits',lambda k,r:f'\t{k}\t{r.t}\t{r.v:.5f}\t{r.i:.5f}\t0\t0\t0\t10\t...........')).encode(), 'gamry')
RAW['bitrode']=(lines('Total Time,Cycle,Loop Counter #1,Step,Step Time,Current,Potential,Amp-Hours,Watt-Hours,Notes',lambda k,r:f'{hms(r.t)},{r.cycle},0,{r.step},{hms(r.step_t)},{r.i},{r.v:.4f},{net[k]:.5f},0,').encode(),'bitrode')
RAW['logger_iso']=(lines('timestamp;pack_current_A;cell_voltage_V',lambda k,r:f'{T(r.t).isoformat()}Z;{r.i};{r.v:.4f}').encode(),'timeseries')
RAW['matlab_csv']=(lines('t(s),I(A),U(V),T(degC)',lambda k,r:f'{r.t},{r.i},{r.v:.4f},25').encode(),'timeseries')
RAW['spaces']=(lines('  Time(s)   Voltage(V)  Current(A) ',lambda k,r:f'  {r.t:.1f}   {r.v:.4f}   {r.i:.3f}').encode(),'timeseries')

@pytest.mark.parametrize('name', list(RAW))
def test_every_export_gives_the_same_four_cycles(tmp_path, name):
    data, fmt = RAW[name]; path = tmp_path/'export'; path.write_bytes(data)
    assert is_raw(path) == fmt
    table, notes = cycles_from_file(path)
    np.testing.assert_allclose(table.cap_ah, CAPS, atol=4e-3); assert table.cell_id.nunique() == 1 and set(table.kind) == {'full'}
    assert {n['code'] for n in notes} <= {'sign', 'cycles_derived', 'rows'}

# ---------------------------------------------------------------- tables of cycles

K = np.arange(1, 61); CAP = 1.1 - 1e-3*K; N = len(K); F = pd.DataFrame
def csv(df, **k): return df.to_csv(index=False, **k).encode() if 'encoding' not in k else df.to_csv(index=False).encode(k['encoding'])
TAB = {}
TAB['german_mah']=('Zelle;Zyklus Nr.;Kapazität [mAh]\n'+'\n'.join(f'A;{k};{c*1000:.1f}'.replace('.',',') for k,c in zip(K,CAP))).encode('latin-1')
TAB['thousands']=('cell;cycle;capacity (mAh)\n'+'\n'.join(f'A;{k};{c*1000:,.2f}'.replace(',','_').replace('.',',').replace('_','.') for k,c in zip(K,CAP))).encode()
TAB['percent_signs']=('cell,cycle,SOH\n'+'\n'.join(f'A,{k},{c/1.1*100:.2f} %' for k,c in zip(K,CAP))).encode()
TAB['percent_comma']=('cell;cycle;SOH\n'+'\n'.join(f'A;{k};{c/1.1*100:.2f}%'.replace('.',',') for k,c in zip(K,CAP))).encode()
TAB['retention']=csv(F({'Cell name':'A','Cycle':K,'Capacity retention (%)':CAP/1.1*100}))
TAB['restart']=csv(F(dict(cell='A',cycle=np.r_[K[:30],K[:30]],capacity=CAP)))
TAB['twice_the_same']=csv(pd.concat([F(dict(cell='A',cycle=K,capacity=CAP))]*2))
TAB['overlap_resume']=csv(F(dict(cell='A',cycle=np.r_[K[:30],K[25:]],capacity=np.r_[CAP[:30],CAP[25:]])))
TAB['descending']=csv(F(dict(cell='A',cycle=K[::-1],capacity=CAP[::-1])))
TAB['two_cells_interleaved']=csv(pd.concat([F(dict(cell=c,cycle=K,capacity=CAP)) for c in 'AB']).sort_values(['cycle','cell']))
TAB['wide_units']=csv(F({'Cycle':K,'Cell 1 (mAh)':CAP*1000,'Cell 2 (mAh)':CAP*990}))
TAB['wide_soh']=csv(F({'cycle_number':K,'A':CAP/CAP[0],'B':CAP/CAP[0]}))
TAB['wide_rows']=('cell,'+','.join(f'cycle_{k}' for k in K)+'\n'+'\n'.join(f'{n},'+','.join(f'{c:.4f}' for c in CAP) for n in 'AB')).encode()
TAB['neware_cycle']=csv(F({'Cycle Index':K,'Chg. Cap.(Ah)':CAP*1.001,'DChg. Cap.(Ah)':CAP,'Chg.-DChg. Eff(%)':99.9,'Chg. Energy(Wh)':4.,'DChg. Energy(Wh)':3.9,'DChg. Med. Volt.(V)':3.6}))
TAB['neware_cycle_cn']=csv(F({'循环号':K,'充电容量(mAh)':CAP*1001,'放电容量(mAh)':CAP*1000,'效率(%)':99.9}),encoding='gb18030')
TAB['arbin_stats']=csv(F({'Cycle_Index':K,'Test_Time(s)':K*7200.,'Current(A)':-1.,'Voltage(V)':2.7,'Charge_Capacity(Ah)':CAP*1.001,'Discharge_Capacity(Ah)':CAP,'Vmax_On_Cycle(V)':4.2}))
TAB['arbin_stats_running']=csv(F({'Cycle_Index':K,'Test_Time(s)':K*7200.,'Charge_Capacity(Ah)':np.cumsum(CAP*1.001),'Discharge_Capacity(Ah)':np.cumsum(CAP)}))
TAB['pyprobe_summary']=csv(F({'Cycle':K,'Capacity Throughput [Ah]':np.cumsum(CAP),'Time [s]':K*7200.,'Charge Capacity [Ah]':CAP,'Discharge Capacity [Ah]':CAP,'SOH Charge [%]':CAP/CAP[0]*100,'SOH Discharge [%]':CAP/CAP[0]*100,'Coulombic Efficiency':1.}))
TAB['cellpy_summary']=csv(F(dict(cycle_index=K,data_point=K*100,test_time=K*7200.,date_time='2020-01-01',discharge_capacity=CAP,charge_capacity=CAP,coulombic_efficiency=99.8,discharge_capacity_gravimetric=CAP*120,charge_capacity_gravimetric=CAP*120,cumulated_coulombic_efficiency=1.)),sep=';')
TAB['beep_summary']=csv(F(dict(cycle_index=K,discharge_capacity=CAP,charge_capacity=CAP,discharge_energy=3.5,charge_energy=3.6,dc_internal_resistance=.017,temperature_maximum=35.,temperature_average=30.,temperature_minimum=25.,date_time_iso='2017-05-09T00:00:00',energy_efficiency=.9,paused=0)))
TAB['p492']=csv(F({'Cycle_Index':K,'Cycle_Label':'Aging cycle','Time_s':K*7200.,'Absolute_Charge_Throughput_Ah':np.cumsum(CAP),'Equivalent_Full_Cycles':K*.98,'Q_chg':CAP,'q_chg':CAP/1.1,'Q_dis':CAP,'q_dis':CAP/1.1,'CE':1.,'V_min':3.,'T_avg':29.8}))
TAB['voltaiq_cycles']=csv(F({'Test Name':'A','Cycle Number':K,'Charge Capacity (Ah)':CAP,'Discharge Capacity (Ah)':CAP,'Coulombic Efficiency (%)':99.9}))
TAB['comments']=('# exported 2026-01-01\n# nominal 1.1 Ah; tester 7\n#\n'+csv(F(dict(cell='A',cycle=K,capacity_Ah=CAP))).decode()).encode()
TAB['units_below']=('cell,cycle,capacity\n,,(Ah)\n'+'\n'.join(f'A,{k},{c:.4f}' for k,c in zip(K,CAP))).encode()
TAB['group_header']=('Cell A,,,Cell B,,\ncycle,charge,discharge,cycle,charge,discharge\n'+'\n'.join(f'{k},{c:.4f},{c:.4f},{k},{c:.4f},{c:.4f}' for k,c in zip(K,CAP))).encode()
TAB['specific']=csv(F({'Cycle':K,'Specific Discharge Capacity (mAh/g)':CAP*150}))
TAB['energy']=csv(F({'Cycle':K,'Discharge energy (Wh)':CAP*3.6}))
TAB['date_only']=csv(F({'Date':pd.date_range('2024-01-01',periods=N),'Capacity':CAP}))
TAB['nasa_kaggle']=csv(F(dict(type=['charge','discharge']*30,start_time='[2010. 7. 21.]',ambient_temperature=4,battery_id='B0047',test_id=np.arange(60),uid=np.arange(60),filename='x.csv',Capacity=[np.nan if i%2==0 else CAP[i] for i in range(60)],Re='',Rct='')))
TAB['float_cycles']=('cell,cycle,capacity\n'+'\n'.join(f'A,{k}.0,{c:.5e}' for k,c in zip(K,CAP))).encode()
TAB['bom_crlf_spaces']=('\ufeff Cell ID , Cycle No. , Capacity (Ah) \r\n'+'\r\n'.join(f' A , {k} , {c:.4f} ' for k,c in zip(K,CAP))).encode()
TAB['utf16_tab']=F({'Cell':'A','Cycle':K,'Cap.(mAh)':CAP*1000}).to_csv(index=False,sep='\t').encode('utf-16')
TAB['soh_camel']=('Prüfling;Zyklen (lfd. Nr.);SoH [%];Temp. [°C]\n'+'\n'.join(f'A;{k};{c/1.1*100:.2f};25,1'.replace('.',',') for k,c in zip(K,CAP))).encode('cp1252')
TAB['hash_cycle']=csv(F({'#':K,'Cap (Ah)':CAP}))
TAB['nan_tail']=csv(F(dict(cell='A',cycle=np.r_[K,61],capacity=np.r_[CAP,np.nan])))
TAB['excel_dates']=csv(F({'Cell':'A','Date':45000+K,'Cycle':K,'Capacity (Ah)':CAP}))
TAB['index_repeated']=pd.concat([F(dict(cell_id='A',cycle=K,cap_ah=CAP)),F(dict(cell_id='B',cycle=K,cap_ah=CAP))])
TAB['xjtu']=csv(F({'cycle':K,'capacity':CAP,'RUL':60-K}))
TAB['calb']=csv(F({'循环次数':K,'放电容量/Ah':CAP}),encoding='utf-8')
TAB['french']=('Cellule;N° de cycle;Capacité de décharge (Ah)\n'+'\n'.join(f'A;{k};{c:.4f}'.replace('.',',') for k,c in zip(K,CAP))).encode('cp1252')
TAB['efc_only']=csv(F({'EFC':K*1.,'Capacity (Ah)':CAP}))
TAB['charge_only']=csv(F({'cycle':K,'charge_capacity_ah':CAP}))
TAB['sum_row']=csv(F(dict(cell='A',cycle=K,capacity=CAP)))+b'Average,,1.07\n'
TAB['mixed_case_dupe']=csv(F({'cell':'A','cycle':K,'Q_dis':CAP,'q_dis':CAP/1.1}))
b = io.BytesIO()
with pd.ExcelWriter(b) as w:
    F({'Report':['Cycle life test']}).to_excel(w,sheet_name='Info',index=False); F({'Cell':'A','Date':pd.date_range('2024-01-01',periods=N),'Cycle':K,'Capacity (mAh)':CAP*1000}).to_excel(w,sheet_name='Cycles',index=False,startrow=3)
TAB['xlsx_title_rows']=b.getvalue()
TAB['html_xls']=F({'Cell':'A','Cycle':K,'Capacity':CAP}).to_html(index=False).encode()
XLS = zlib.decompress(base64.b85decode('c-rmQZ)h8390%~<UGDO)$>owJX_K~Tj2O4L4O9>jwyayXq0ln-!s!q->r$+X?dXEgy>UAGQV;||@y%eq@XgdWQ>PA{GGvTxRM?>4Xe;c+gn>hcj4ko^d~<p1Gaq3EH>mUpdG7A{-skRe_dIt;&Yz3V9sVpkPq&o~<fBG2ME*r>27g2C1(!H)HpOgv8su+tr7Wuw3i5^Y+w@iROh8;ialPlsq))ByxF%ZQ@AI^eh9}0W`FmJ4;TS50IEM9x#eL7D5Bcj*2FH~^J%YLu^(R>OYt$Rj@;2)AyzZQ_i_VpYOOJc~_*t`n%;DOg&tYcK@-U_7N70X8f5&L8Ytz8wSf#eif}9nhBgB_<TXnoTDVAgO5rv7K<Fa;WXzk$O93}a3AE7^*d7|Ij<NDkDO8dQSH;CK+RNDjp(jMfCczgT1rbTp+nlBlmGfz{5Hd-RF=*jWXiD~ZS@7b-Py?JV+R^5M-w$T0FP>)foF<%=St>)|1{dK0BtF;<W1}pWd?d1+nEBh)VWA&;0s#gbIUd_F2AS|8-xPQ3H{UeG|72$dh??BAQF}7Sj{F@*DHZ!z)d-+AQ9K<uD^<;TK{0wT+8$vL4WYVfj5D%e#6I<=Ud=_<*J3dc~+f&}m)<an5Eu=->&!Z?ml^<L*zl!Ile|`Fk-1INy)jWT6+x&s#(TnB7RNyDw9`@pMh}IZuj1S%y<;!w=YIygcpHXN2aX$*0u6OKB@9`O<TVe!qiMO7yW`d51Rr!APce&eVRjhFzwK~Z1JgX*-T|KKN&Z_vut)=$aX)T$&<daK2Ub4Jx`83<|VOwI%d_&#5B#!CW_hK7<B<uL{`JgS0wiInaABPSjDM@W>w5@0x`UJFtq$sstqy38ZL!X3BASp;4(CC1o1JI|S(@1hs2Q@mV=pgiI=q!?~)FF)yDLMpw7CMI{Ep=F<!-@_=&p;QDB&6=p=nh49Kwp3^B5|aSXmmu;5$IXy5|XggQH_o&ItqOWdL0tK)Q(0wigutEpdUeEN*&Yan4)9Qm!Tg+(s0|_)o54IF7y@XCy?BbI<C=iMaQA9LT^BFUFw8JClsB4z6QMs$u+4vHM&#LozT~zw<5VJbyA~~icUh`fPM<e6{%Aiol<lPx&b|m<g(OhjZP~%4Q>7)^bRBoQg>-|m!i9%{m{=Kxg>SBMt3W^8#)ZV3(2h18I8^;Is@%MzkuX|)LD(rDmn|DfZmN{M(Q4o?oo6PbQ*dT$yup;HM&>Pz0g_cSCE{Rx=*9~6x|1%gC0k6O6r_O=M<fTE<jHrIVp9&M)xbaAG!$r8j=%I=QTR7=sa`@`T&yS(0GR--8;-mSq??KF^TsipZ7j!dvBWo?|+?J{B5lKP4d4jJ7|JGbspba_>NTP`^wak`cIl{qrENT4o&<2LQ!_|-Y01<-^ayq>|JvI<>#NV`1jl~bpN{{wAB4KmU5hTdH;U_$9%D?')) # an Excel 97 workbook: title rows, a date column, capacity in mAh
RELATIVE = {'percent_signs', 'soh_camel', 'percent_comma', 'retention', 'wide_soh'}                  # no ampere-hours in the file
REFUSED = {
    'group_header': 'two columns of one name', 'specific': "'Specific Discharge Capacity (mAh/g)' is a capacity per mass: capacities must be in Ah or mAh",
    'energy': "missing column capacity or soh; present: 'Cycle', 'Discharge energy (Wh)'", 'date_only': "missing column cycle; present: 'Date', 'Capacity'",
    'nasa_kaggle': 'missing column cycle', 'nan_tail': 'cell A, cycle 61: cap_ah is missing', 'efc_only': 'missing column cycle', 'charge_only': 'missing column capacity or soh',
    'sum_row': 'cell Average: needs at least 2 rows, got 1', 'html_xls': 'a web page', 'twice_no_name': 'each cycle several times and no column for the cell'}
TAB['twice_no_name'] = csv(pd.concat([F(dict(cycle=K, capacity=CAP))]*2))
SAID = {'restart': 'start again once and the capacity goes on', 'twice_the_same': '60 rows repeat an earlier row exactly', 'overlap_resume': '5 rows repeat an earlier row exactly',
    'arbin_stats_running': 'a running counter: its steps were taken', 'neware_cycle_cn': 'read as GB 18030', 'descending': 'not in cycle order, sorted', 'xlsx_title_rows': "read sheet 'Cycles'",
    'p492': "could each be cap_ah: took 'Q_dis'", 'german_mah': 'capacity is in mAh, as stated', 'percent_comma': 'SOH is in percent', 'thousands': 'thousands are parted by "."', 'comments': '3 lines above the header skipped'}

@pytest.mark.parametrize('name', [n for n in TAB if n not in REFUSED])
def test_every_table_gives_the_same_curve(name):
    got = read_cycles(TAB[name]); said = ' | '.join(got.notes.message)
    want = CAP/(1.1 if 'percent' in name or name in ('retention', 'soh_camel') else CAP[0]) if name in RELATIVE else CAP
    for i in got.ids:
        assert got.cycle(i).tolist() == K.tolist()
        np.testing.assert_allclose(got.rows(i).cap_ah, want*(.99 if i == 'Cell 2' else 1), atol=2e-4)
    assert SAID.get(name, '') in said, said

@pytest.mark.parametrize('name', list(REFUSED))
def test_what_cannot_be_right_is_refused_in_words(name):
    with pytest.raises(InputError) as e: read_cycles(TAB[name])
    assert REFUSED[name] in str(e.value) and len(str(e.value)) < 600, str(e.value)

def test_an_excel_97_workbook():
    got = read_cycles(XLS)
    assert got.ids == ['A'] and len(got.cycles) == 30 and got.cycles.cap_ah.iloc[[0, -1]].round(4).tolist() == [1.099, 1.07]
    with pytest.raises(InputError, match='damaged spreadsheet'): read_cycles(XLS[:700])

def test_a_restart_that_may_be_another_cell_is_not_joined():
    fresh = np.r_[CAP[:30], CAP[:30] + 1e-4]                                                # starts high again: another cell, or another test
    for cell in (dict(cell='A'), {}):
        with pytest.raises(InputError, match='more than once|several times'): read_cycles(csv(F(dict(**cell, cycle=np.r_[K[:30], K[:30]], capacity=fresh))))

def test_check_prints_the_documented_keys(tmp_path):
    for name, data in (('restart.csv', TAB['restart']), ('pec.csv', RAW['pec'][0]), ('book.xlsx', TAB['xlsx_title_rows'])): (tmp_path/name).write_bytes(data)
    (tmp_path/'rest.csv').write_text('Test_Time(s),Current(A),Voltage(V)\n' + ''.join(f'{k},0,3.3\n' for k in range(50)))
    def check(*names):
        out = subprocess.run(['battnb', 'check', '--json', *(str(tmp_path/n) for n in names)], capture_output=True, text=True)
        return out.returncode, json.loads(out.stdout)
    want = dict(zip(('restart.csv', 'pec.csv', 'book.xlsx'), (('A', 60, 1.099, 1.04), ('345626_9356111_33_6', 4, 1., .97), ('A', 60, 1.099, 1.04))))
    code, rows = check(*want)
    assert code == 0 and len(rows) == 3, rows
    for r, (cell, n, first, last) in zip(rows, want.values()):
        assert {'cell_id', 'n_cycles', 'cap_ah_first', 'cap_ah_last', 'problems'} <= set(r) and (r['cell_id'], r['n_cycles']) == (cell, n)
        assert abs(r['cap_ah_first'] - first) < 4e-3 and abs(r['cap_ah_last'] - last) < 4e-3
    code, rows = check('rest.csv')
    assert code == 1 and rows[0]['cap_ah_first'] is None and 'the current is zero throughout' in rows[0]['problems'][0]

# ---------------------------------------------------------------- Neware's binary files, written in the layouts that fastnda documents

def nda(version):
    "A file of the small cell: a header with pointers to device info and records, then one packed record a sample (version 3 and 8), or marked records (version 29)."
    way = {'C': 1, 'D': 2, 'R': 4}; range_ma = 6000; unit = .1                                     # one count of current is 0.1 mA in this range
    step = CELL.step.to_numpy(); new = np.r_[1, np.diff(step) != 0].cumsum()
    base = dict(index=np.arange(1, len(CELL) + 1), cycle=CELL.cycle - 1, step=step % 250, kind=CELL.state.map(way), volts=(CELL.v*1e4).round(), amps=(CELL.i*1e3/unit).round())
    if version == 29:
        fields = [('id', 'u1'), ('p1', 'V1'), ('index', '<u4'), ('cycle', '<u4'), ('step', '<u2'), ('kind', 'u1'), ('jump', 'u1'), ('time', '<u8'), ('volts', '<i4'), ('amps', '<i4'), ('p2', 'V8'),
                  ('chg', '<i8'), ('dis', '<i8'), ('e1', '<i8'), ('e2', '<i8'), ('Y', '<u2'), ('M', 'u1'), ('D', 'u1'), ('h', 'u1'), ('m', 'u1'), ('s', 'u1'), ('p3', 'V1'), ('range', '<i4'), ('p4', 'V4')]
        when = pd.to_datetime([T(s) for s in CELL.t])
        base |= dict(id=0x55, jump=new % 250, time=(CELL.step_t*1000).round(), chg=(step_c*3.6e6/unit).round(), dis=(step_d*3.6e6/unit).round(), Y=when.year, M=when.month, D=when.day, h=when.hour, m=when.minute, s=when.second, range=range_ma)
    else:
        fields = [('id', 'u1'), ('index', '<u4'), ('cycle', '<u4'), ('step', 'u1'), ('kind', 'u1'), ('time', '<u4'), ('volts', '<i4'), ('amps', '<i4'), ('p1', 'V8'), ('cap', '<i8')]
        fields += [('e', '<i8'), ('date', '<u8'), ('p2', 'V4')] if version == 8 else [('p2', 'V4')]
        base |= dict(time=CELL.step_t.round(), cap=(CELL.ah*3.6e6/unit).round()) | (dict(date=[int(T(s).timestamp()) for s in CELL.t], cycle=CELL.cycle) if version == 8 else {})
    records = np.zeros(len(CELL), np.dtype(fields))
    for name, values in base.items(): records[name] = np.asarray(values)
    if version == 29: records['p1'] = np.void(bytes(1)); records['index'] = base['index']
    head = bytearray(114); head[:6] = b'NEWARE'; head[14] = version
    def put(at, n): head[at:at+4] = int(n).to_bytes(4, 'little')
    put(16, 72); put(20, 42); put(72 + 26, range_ma); put(64, 114); put(68, records.nbytes)
    return bytes(head) + records.tobytes()

@pytest.mark.parametrize('version, doubted', [(8, False), (29, False), (3, True)])
def test_neware_nda_of_three_generations(tmp_path, version, doubted):
    path = tmp_path/'export.bin'; path.write_bytes(nda(version))
    assert is_raw(path) == 'neware-nda'
    table, notes = cycles_from_file(path)
    np.testing.assert_allclose(table.cap_ah, CAPS, atol=4e-3); np.testing.assert_allclose(table.charge_cap_ah, CAPS, atol=.012)
    assert any('has not been verified' in n['text'] for n in notes) == doubted
    path.write_bytes(nda(version)[:14] + bytes([77]) + nda(version)[15:])
    with pytest.raises(InputError, match='nda version 77 is not yet supported'): cycles_from_file(path)

# ---------------------------------------------------------------- HDF5 and old workbooks

def test_the_matlab_73_archive_cell_by_cell(tmp_path):
    h5py = pytest.importorskip('h5py'); path = tmp_path/'batch.mat'
    with h5py.File(path, 'w', userblock_size=512) as f:
        put = lambda x: f.create_dataset(f'#refs#/{len(f.get("#refs#", ()))}', data=np.atleast_2d(x)).ref
        cells = []
        for c in range(2):
            g = f.create_group(f'cell{c}'); parts = [p for _, p in CELL.groupby('cycle')]
            for name, x in dict(t=lambda p: (p.t - p.t.iloc[0])/60, V=lambda p: p.v, I=lambda p: p.i/1.1, Qc=lambda p: pd.Series(chg_cycle)[p.index], Qd=lambda p: pd.Series(dis_cycle)[p.index], T=lambda p: 30 + 0*p.v).items():
                g.create_dataset(name, data=np.array([[put(np.asarray(x(p)))] for p in parts], dtype=h5py.ref_dtype))
            cells.append([g.ref])
        f.create_dataset('batch/cycles', data=np.array(cells, dtype=h5py.ref_dtype))
    with open(path, 'r+b') as f: f.write(b'MATLAB 7.3 MAT-file, Platform: GLNXA64')                 # MATLAB's text in front of the HDF5 file
    assert is_raw(path) == 'matr-batch'
    table, _ = cycles_from_file(path)
    assert table.groupby('cell_id').size().to_dict() == {'cell 1': 4, 'cell 2': 4}
    np.testing.assert_allclose(table.cap_ah, CAPS*2, atol=1e-6); assert table.temperature_c.round(3).eq(30).all()
    with h5py.File(tmp_path/'other.h5', 'w') as f: f['CellpyData/raw'] = 1
    for read in (cycles_from_file, read_cycles):
        with pytest.raises(InputError, match='HDF5|CellpyData'): read(tmp_path/'other.h5')

def test_samples_in_an_old_workbook(tmp_path, monkeypatch):
    "The layout of Arbin's .xls exports: an info sheet and a channel sheet; the sheets are handed over by xlrd."
    import battnb.cyclers as cyclers
    frame = pd.read_csv(io.StringIO(RAW['arbin_new'][0].decode().replace('\t', '')))
    sheets = {'Info': [['TEST REPORT']], 'Channel_1-008': [list(frame.columns), *frame.to_numpy().tolist()]}
    (tmp_path/'a.xls').write_bytes(XLS)
    monkeypatch.setattr(cyclers, '_xls_sheets', lambda data: sheets)
    assert is_raw(tmp_path/'a.xls') == 'arbin'; np.testing.assert_allclose(cycles_from_file(tmp_path/'a.xls')[0].cap_ah, CAPS, atol=1e-4)
    monkeypatch.undo()
    assert is_raw(tmp_path/'a.xls') is None                                                      # a table of cycles
    with pytest.raises(InputError, match='no sheet with time, voltage and current among: Info, Cycles'): cycles_from_file(tmp_path/'a.xls')

@pytest.mark.parametrize('head, says', [(b'BIO-LOGIC MODULAR FILE\x1a', 'export it as text'), (b'\x00\x01\x00\x00Standard Jet DB', 'export it as CSV or .xlsx'), (b'%PDF-1.7', 'a PDF document')])
def test_what_stays_refused_says_what_to_export(tmp_path, head, says):
    (tmp_path/'x').write_bytes(head + bytes(3000))
    with pytest.raises(InputError, match=says): cycles_from_file(tmp_path/'x')
